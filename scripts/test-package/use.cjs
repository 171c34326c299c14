// A service that has no ES modules of its own: what both entries export comes by require, too.
const assert = require('node:assert/strict');
const { crc32c, openDevice } = require('holdfast');
const { FaultyDevice } = require('holdfast/testing');

assert.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
assert.equal(typeof openDevice, 'function');
assert.equal(typeof FaultyDevice, 'function');
