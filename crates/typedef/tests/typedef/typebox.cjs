// Schemas made with TypeBox, random values, and what TypeBox says of each. The folder of the
// package is the first argument; a seed and a number of values follow. One line of JSON a schema.
//
// "registered": kinds as types of TypeBox's own registry, with checks written here in JavaScript.
// "standard": the nearest types that TypeBox has, with the keyword as an option.
const [folder, seed, count] = process.argv.slice(2)
const { Type, Kind, TypeRegistry } = require(folder)
const { Value } = require(folder + '/value')

let state = Number(seed) | 0
const bits = () => {
  state = (state + 0x6d2b79f5) | 0
  let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
  return (mixed ^ (mixed >>> 14)) >>> 0
}
const below = (end) => bits() % end
const one = (list) => list[below(list.length)]

const isText = (value) => typeof value === 'string'
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value)
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)
const whole = (low, high) => (value) => Number.isInteger(value) && value >= low && value <= high

// A wide integer: an exact comparison, and text beyond 2^53 only.
const wide = (low, high) => (value) => {
  if (isText(value)) {
    if (!/^-?[1-9][0-9]*$/.test(value)) return false
    const number = BigInt(value)
    const beyond = number > 2n ** 53n || number < -(2n ** 53n)
    return beyond && number >= low && number <= high
  }
  return Number.isInteger(value) && BigInt(value) >= low && BigInt(value) <= high
}

// The first number that rounds to infinity lies half a step beyond the largest.
const half = (value) => isNumber(value) && Math.abs(value) < 65520
const brain = (value) => isNumber(value) && Math.abs(value) < 2 ** 128 - 2 ** 119
const single = (value) => isNumber(value) && Number.isFinite(Math.fround(value))

const base64url = (value) =>
  isText(value) && Buffer.from(value, 'base64url').toString('base64url') === value

const timestamp = (value) => {
  if (!isText(value)) return false
  const form = /^(\d{4}-\d\d-\d\d)[Tt]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$/
  const found = form.exec(value)
  if (!found) return false
  const day = new Date(found[1] + 'T00:00:00Z')
  return !Number.isNaN(day.valueOf()) && day.toISOString().startsWith(found[1])
}

const tensor = (value) =>
  isObject(value) && value.dtype === 'F32' && Array.isArray(value.shape) &&
  value.shape.length === 2 && value.shape.every(whole(0, 2 ** 53)) && value.shape[1] === 3

const CHECKS = {
  Int8: whole(-128, 127),
  Int16: whole(-32768, 32767),
  Int32: whole(-2147483648, 2147483647),
  Int64: wide(-(2n ** 63n), 2n ** 63n - 1n),
  Uint8: whole(0, 255),
  Uint16: whole(0, 65535),
  Uint32: whole(0, 4294967295),
  Uint64: wide(0n, 2n ** 64n - 1n),
  Float16: half,
  BFloat16: brain,
  Float32: single,
  Float64: isNumber,
  Boolean: (value) => value === true || value === false,
  String: isText,
  Bytes: base64url,
  Timestamp: timestamp,
  Tensor: tensor
}
const NOTES = { Tensor: { dtype: 'F32', shape: ['N', 3] } }

const registered = (kind) => {
  const keyword = 'TypeDef:' + kind
  if (!TypeRegistry.Has(keyword)) TypeRegistry.Set(keyword, (_, value) => CHECKS[kind](value))
  return Type.Unsafe({ [Kind]: keyword, [keyword]: NOTES[kind] ?? true })
}

const integer = (kind, minimum, maximum) =>
  Type.Integer({ minimum, maximum, ['TypeDef:' + kind]: true })
const members = ['', 'a', 'on', 'off', 'é']
const point = () => Type.Object(
  { x: Type.Number({ 'TypeDef:Float64': true }), n: integer('Uint8', 0, 255) },
  { 'TypeDef:Struct': { fields: ['n', 'x'] } })
const shape = (name, field) => Type.Object({ k: Type.Literal(name), ...field }, { 'TypeDef:Struct': true })
const circle = shape('circle', { r: Type.Number({ 'TypeDef:Float64': true }) })
const text = shape('text', { s: Type.String({ 'TypeDef:String': true }) })

const STANDARD = {
  Int8: integer('Int8', -128, 127),
  Int16: integer('Int16', -32768, 32767),
  Int32: integer('Int32', -2147483648, 2147483647),
  Int64: Type.Integer({ minimum: -(2 ** 63), exclusiveMaximum: 2 ** 63, 'TypeDef:Int64': true }),
  Uint8: integer('Uint8', 0, 255),
  Uint16: integer('Uint16', 0, 65535),
  Uint32: integer('Uint32', 0, 4294967295),
  Uint64: Type.Integer({ minimum: 0, exclusiveMaximum: 2 ** 64, 'TypeDef:Uint64': true }),
  Float64: Type.Number({ 'TypeDef:Float64': true }),
  Float16: Type.Number({ exclusiveMinimum: -65520, exclusiveMaximum: 65520, 'TypeDef:Float16': true }),
  Boolean: Type.Boolean({ 'TypeDef:Boolean': true }),
  String: Type.String({ 'TypeDef:String': true }),
  Enum: Type.Union(members.map((name) => Type.Literal(name)), { enum: members, 'TypeDef:Enum': true }),
  Array: Type.Array(integer('Int8', -128, 127), { maxItems: 3, 'TypeDef:Array': true }),
  Record: Type.Record(Type.String(), integer('Int8', -128, 127), { 'TypeDef:Record': true }),
  Struct: point(),
  Union: Type.Union([circle, text], {
    'TypeDef:Union': { discriminator: { kind: 'field', name: 'k' }, mapping: { circle, text } }
  }),
  Tensor: Type.Object({
    dtype: Type.Literal('F32'),
    shape: Type.Array(Type.Integer({ minimum: 0 }), { minItems: 2, maxItems: 2 })
  }, { 'TypeDef:Tensor': { dtype: 'F32', shape: ['N', 'M'] } })
}

// A module: TypeBox leaves bare names in $ref and $id.
const scene = Type.Module({
  Point: point(),
  Line: Type.Object(
    { from: Type.Ref('Point'), to: Type.Ref('Point') },
    { 'TypeDef:Struct': { fields: ['from', 'to'] } }),
  Scene: Type.Object(
    { lines: Type.Array(Type.Ref('Line'), { 'TypeDef:Array': true }) },
    { 'TypeDef:Struct': { fields: ['lines'] } })
}).Import('Scene')

const number = () => {
  const power = 2 ** below(140)
  return one([
    () => below(600) - 300,
    () => (below(2) ? 1 : -1) * (power + below(3) - 1),
    () => (below(2) ? 1 : -1) * (power - 0.5),
    () => below(1000) / 7,
    () => one([65504, 65519, 65520, -65520, 2147483647, 2147483648, -2147483649, 4294967296]),
    () => one([3.4028234e38, 3.5e38, -3.5e38, 1e300, 2 ** 53, -(2 ** 63), 2 ** 63, 2 ** 64, 5e-324])
  ])()
}
const two = (end) => String(below(end)).padStart(2, '0')
const date = () =>
  `${1900 + below(200)}-${two(14)}-${two(33)}${one(['T', 't', ' '])}${two(25)}:${two(61)}:${two(60)}` +
  one(['', '.5', '.', '.123456789']) + one(['Z', 'z', '', '+01:00', '-23:59', '+24:00', '+1:00'])
const digits = () => one(['', '-', '+', '0']) + String(BigInt(bits()) ** BigInt(1 + below(3)))
const chars = () => Array.from({ length: below(6) }, () => one([...'aAz09-_+/= é\u0000'])).join('')
const plain = () => one([
  number, number, number, digits, chars, chars, date, date,
  () => one(members), () => below(2) === 1, () => null, () => [], () => ({})
])()
const list = (of) => Array.from({ length: below(5) }, of)
const maybe = (of) => (below(4) ? of() : plain())
const aPoint = () => ({ x: maybe(number), n: maybe(() => below(256)), ...(below(5) ? {} : { more: 1 }) })
const without = (object) => {
  if (below(6) === 0) delete object[one(Object.keys(object))]
  return object
}
const small = () => (below(2) ? plain() : below(600) - 300)
const special = {
  Int8: small,
  Uint8: small,
  Bytes: () => (below(2) ? plain() : chars()),
  Timestamp: () => (below(2) ? plain() : date()),
  Array: () => maybe(() => list(() => maybe(() => below(128)))),
  Record: () => maybe(() => Object.fromEntries(list(() => [chars(), maybe(() => below(128))]))),
  Struct: () => maybe(() => without(aPoint())),
  Union: () => maybe(() => without(one([
    () => ({ k: one(['circle', 'text', 'x']), r: maybe(number) }),
    () => ({ k: one(['circle', 'text', 1]), s: maybe(chars) })
  ])())),
  Tensor: () => maybe(() => without({
    dtype: one(['F32', 'F32', 'F32', 'F16', 'F33', 1]),
    shape: one([() => [below(9), 3], () => [below(9), below(5)], () => list(() => below(4)), () => [0.5, 3], plain])()
  })),
  Scene: () => maybe(() => without({
    lines: maybe(() => list(() => maybe(() => without({ from: maybe(aPoint), to: maybe(aPoint) }))))
  }))
}

const ask = (name, kind, type) => {
  const values = Array.from({ length: Number(count) }, special[kind] ?? plain)
  const accepted = values.map((value) => Value.Check(type, value))
  console.log(JSON.stringify({ name, kind, schema: type, values, accepted }))
}
for (const kind of Object.keys(CHECKS)) ask('registered', kind, registered(kind))
for (const kind of Object.keys(STANDARD)) ask('standard', kind, STANDARD[kind])
ask('module', 'Scene', scene)
