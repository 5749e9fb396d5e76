// A page from the disk may start no worker: the search runs in a hidden frame instead.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {hidden: true}))
    this.inside = frame.contentWindow
    this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
    this.ready = new Promise(onload => this.inside.document.body.append(
      Object.assign(this.inside.document.createElement("script"), {src: url, onload})))
  }
  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", {data})))
  }
}
