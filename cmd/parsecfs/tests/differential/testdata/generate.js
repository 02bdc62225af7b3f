// Makes keys with Node: a JSON object a line.
const crypto = require('crypto')

function put (name, kind, data) {
  console.log(JSON.stringify({ name: 'node ' + name, kind, data: Buffer.from(data).toString('base64') }))
}

const kinds = [
  ['rsa', { modulusLength: 2048 }], ['rsa-pss', { modulusLength: 2048 }],
  ['rsa-pss', { modulusLength: 2048, hashAlgorithm: 'sha256', mgf1HashAlgorithm: 'sha256', saltLength: 32 }],
  ['rsa-pss', { modulusLength: 2048, hashAlgorithm: 'sha512', mgf1HashAlgorithm: 'sha256', saltLength: 20 }],
  ['ec', { namedCurve: 'P-256' }], ['ec', { namedCurve: 'P-521' }], ['ec', { namedCurve: 'secp256k1' }], ['ec', { namedCurve: 'P-256', paramEncoding: 'explicit' }],
  ['ed25519', {}], ['ed448', {}], ['x25519', {}], ['x448', {}]
]
for (const [type, options] of kinds) {
  const { privateKey, publicKey } = crypto.generateKeyPairSync(type, options)
  const name = type + ' ' + JSON.stringify(options)
  for (const format of ['pem', 'der']) {
    for (const form of ['pkcs8', 'sec1', 'pkcs1']) {
      try { put(`${name} ${form} ${format}`, 'private', privateKey.export({ type: form, format })) } catch {}
    }
    for (const form of ['spki', 'pkcs1']) {
      try { put(`${name} ${form} ${format}`, 'public', publicKey.export({ type: form, format })) } catch {}
    }
  }
  try { put(`${name} jwk`, 'private', JSON.stringify(privateKey.export({ format: 'jwk' })) + '\n') } catch {}
}
