// Signs: node sign.js sync|promises|files SIGN MESSAGE SIGNATURE; files goes through the drop box, by whole files.
const fs = require('node:fs');
const [how, sign, message, signature] = process.argv.slice(2);
const fail = (e) => { console.error(String(e)); process.exit(1); };

if (how === 'sync') {
  const fd = fs.openSync(sign, 'r+');
  const data = fs.readFileSync(message);
  if (data.length) fs.writeSync(fd, data);
  else fs.ftruncateSync(fd, 0);
  const buffer = Buffer.alloc(8192);
  const n = fs.readSync(fd, buffer, 0, buffer.length, null);
  fs.closeSync(fd);
  fs.writeFileSync(signature, buffer.subarray(0, n));
} else if (how === 'files') {
  fs.writeFileSync(sign, fs.readFileSync(message));
  fs.writeFileSync(signature, fs.readFileSync(sign));
} else {
  (async () => {
    const file = await fs.promises.open(sign, 'r+');
    await file.write(await fs.promises.readFile(message));
    const { bytesRead, buffer } = await file.read({ buffer: Buffer.alloc(8192), position: null });
    await file.close();
    await fs.promises.writeFile(signature, buffer.subarray(0, bytesRead));
  })().catch(fail);
}
