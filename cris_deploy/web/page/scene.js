// The picture: a background, and things that can be put on it, moved, turned and scaled.

const LONGEST = 1600; // side of the picture that is shown and searched
export const MOST_PIXELS = 50_000_000;

export class Scene {
  /** `canvas` shows the picture, `handles` holds a button for each thing; `changed()` is called after each change. */
  constructor(canvas, handles, changed) {
    this.canvas = canvas;
    this.handles = handles;
    this.changed = changed;
    this.things = [];
    this.context = canvas.getContext("2d", { willReadFrequently: true });
  }

  /** Take a picture (a Blob, or what drawImage takes) for the background; rejects with a sentence. */
  async show(source) {
    let image = source;
    if (source instanceof Blob) {
      image = await createImageBitmap(source).catch(() => {
        throw new Error(`${source.name ?? "This file"} cannot be read as a picture: take a JPEG, PNG or WebP.`);
      });
    }
    const { width, height } = image;
    if (width * height > MOST_PIXELS) {
      image.close?.();
      throw new Error(`The picture has ${Math.round((width * height) / 1e6)} megapixels: take one of at most ${MOST_PIXELS / 1e6}.`);
    }
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    const before = this.canvas.width;
    this.background?.close?.();
    this.background = image;
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.shrunk = scale < 1;
    this.file = source instanceof Blob ? source : null;
    for (const thing of this.things) {
      thing.size *= this.canvas.width / before;
    }
    this.draw();
  }

  /** The file of a picture that nothing was put on, or null. */
  get original() {
    return this.things.length ? null : this.file;
  }

  /** Put a thing {name, image} at (x, y), shares of the picture's sides, `size` a share of its height. */
  put(thing, x = 0.3 + 0.4 * Math.random(), y = 0.3 + 0.4 * Math.random(), size = 0.26, angle = 0) {
    const item = { ...thing, x, y, size: size * this.canvas.height, angle };
    item.handle = this.handleOf(item);
    this.things.push(item);
    this.handles.append(item.handle);
    this.draw();
    return item;
  }

  remove(item) {
    const index = this.things.indexOf(item);
    this.things.splice(index, 1);
    const next = item.handle.nextElementSibling ?? item.handle.previousElementSibling;
    item.handle.remove();
    next?.focus();
    this.draw();
  }

  empty() {
    this.things = [];
    this.handles.replaceChildren();
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas, context = this.context;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.background, 0, 0, width, height);
    for (const { image, x, y, size, angle, handle } of this.things) {
      const [w, h] = [size, (size * image.height) / image.width];
      context.save();
      context.translate(x * width, y * height);
      context.rotate((angle * Math.PI) / 180);
      context.drawImage(image, -w / 2, -h / 2, w, h);
      context.restore();
      Object.assign(handle.style, {
        left: `${100 * x}%`, top: `${100 * y}%`,
        width: `${(100 * w) / width}%`, height: `${(100 * h) / height}%`,
      });
    }
    this.changed();
  }

  handleOf(item) {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.setAttribute("aria-label", `${item.name}: arrow keys move it, plus and minus scale, brackets turn, Delete removes`);
    handle.title = item.name;
    const limit = (share) => Math.min(Math.max(share, 0), 1);
    handle.onpointerdown = (event) => {
      handle.setPointerCapture(event.pointerId);
      const box = this.canvas.getBoundingClientRect();
      const [dx, dy] = [item.x - event.clientX / box.width, item.y - event.clientY / box.height];
      handle.onpointermove = (move) => {
        item.x = limit(dx + move.clientX / box.width);
        item.y = limit(dy + move.clientY / box.height);
        this.draw();
      };
      handle.onpointerup = handle.onpointercancel = () => (handle.onpointermove = null);
    };
    handle.onwheel = (event) => {
      event.preventDefault();
      this.scale(item, event.deltaY < 0 ? 1.06 : 1 / 1.06);
    };
    const step = 0.02;
    const keys = {
      ArrowLeft: () => (item.x = limit(item.x - step)),
      ArrowRight: () => (item.x = limit(item.x + step)),
      ArrowUp: () => (item.y = limit(item.y - step)),
      ArrowDown: () => (item.y = limit(item.y + step)),
      "+": () => this.scale(item, 1.1),
      "=": () => this.scale(item, 1.1),
      "-": () => this.scale(item, 1 / 1.1),
      "[": () => (item.angle -= 10),
      "]": () => (item.angle += 10),
      Delete: () => this.remove(item),
      Backspace: () => this.remove(item),
    };
    handle.onkeydown = (event) => {
      const act = keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
      this.draw();
    };
    return handle;
  }

  scale(item, factor) {
    item.size = Math.min(Math.max(item.size * factor, 0.04 * this.canvas.height), 1.5 * this.canvas.height);
    this.draw();
  }
}
