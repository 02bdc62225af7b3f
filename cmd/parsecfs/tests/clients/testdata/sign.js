// Signs in one of Node's ways: node sign.js HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
const fs = require('node:fs');
const { once } = require('node:events');
const { pipeline } = require('node:stream/promises');
const [how, sign, message, signature] = process.argv.slice(2);
const slot = (signature) => `${sign}.d/${require('node:path').basename(signature)}`;
const eight = (work) => Promise.all([0, 1, 2, 3, 4, 5, 6, 7].map((n) => work(`${message}.${n}`, `${signature}.${n}`)));
let written = 0;
let allWritten;
const everybody = new Promise((resolve) => { allWritten = resolve; });

const ways = {
  sync() {
    const fd = fs.openSync(sign, 'r+');
    const data = fs.readFileSync(message);
    if (data.length) fs.writeSync(fd, data);
    else fs.ftruncateSync(fd, 0);
    const buffer = Buffer.alloc(8192);
    const n = fs.readSync(fd, buffer, 0, buffer.length, null);
    fs.closeSync(fd);
    fs.writeFileSync(signature, buffer.subarray(0, n));
  },
  wholeSync() {
    const fd = fs.openSync(sign, 'r+');
    fs.writeFileSync(fd, fs.readFileSync(message));
    fs.writeFileSync(signature, fs.readFileSync(fd));
    fs.closeSync(fd);
  },
  async promises(m = message, s = signature) {
    const file = await fs.promises.open(sign, 'r+');
    await file.write(await fs.promises.readFile(m));
    const { bytesRead, buffer } = await file.read({ buffer: Buffer.alloc(8192), position: null });
    await file.close();
    await fs.promises.writeFile(s, buffer.subarray(0, bytesRead));
  },
  async whole() {
    const file = await fs.promises.open(sign, 'r+');
    await file.writeFile(await fs.promises.readFile(message));
    await fs.promises.writeFile(signature, await file.readFile());
    await file.close();
  },
  async streams() {
    const fd = fs.openSync(sign, 'r+');
    const to = fs.createWriteStream(null, { fd, autoClose: false });
    to.end(fs.readFileSync(message));
    await once(to, 'finish');
    await pipeline(fs.createReadStream(null, { fd, autoClose: false }), fs.createWriteStream(signature));
    fs.closeSync(fd);
  },
  files() {
    fs.writeFileSync(sign, fs.readFileSync(message));
    fs.writeFileSync(signature, fs.readFileSync(sign));
  },
  async filesPromises(m = message, s = signature, between = () => {}) {
    await fs.promises.writeFile(sign, await fs.promises.readFile(m));
    await between();
    await fs.promises.writeFile(s, await fs.promises.readFile(sign));
  },
  async copyStreams() {
    await pipeline(fs.createReadStream(message), fs.createWriteStream(sign));
    await pipeline(fs.createReadStream(sign), fs.createWriteStream(signature));
  },
  async copyFile() {
    await fs.promises.copyFile(message, sign);
    await fs.promises.copyFile(sign, signature);
  },
  slot(m = message, s = signature) {
    fs.writeFileSync(slot(s), fs.readFileSync(m));
    fs.writeFileSync(s, fs.readFileSync(slot(s)));
    fs.unlinkSync(slot(s));
  },
  async copySlot() {
    await fs.promises.copyFile(message, slot(signature));
    await fs.promises.copyFile(slot(signature), signature);
    fs.unlinkSync(slot(signature));
  },
  eight: () => eight(ways.promises),
  'eight-files': () => eight((m, s) => ways.filesPromises(m, s, () => {
    if (++written === 8) allWritten();
    return everybody;
  })),
};

(async () => { await ways[how](); })().catch((e) => { console.error(e.code, String(e)); process.exit(1); });
