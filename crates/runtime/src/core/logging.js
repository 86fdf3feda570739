// Levels and names over the session's log, which is what `console` writes to.
//
//   const log = logger('orders');
//   log.info('taken', { id: 7 });               // [orders] taken { id: 7 }
//   log.debug(() => expensive());               // not called unless it is written
//   setLevel('debug');

const levels = ['debug', 'info', 'warn', 'error', 'none'];
let least = levels.indexOf('info');

// What is below this level is not written; `none` writes nothing.
export function setLevel(name) {
  const at = levels.indexOf(name);
  if (at < 0) throw new RangeError(`no level ${String(name)}: ${levels.join(', ')}`);
  least = at;
}

export function getLevel() { return levels[least]; }

function write(name, level, args) {
  if (levels.indexOf(level) < least) return;
  const said = args.map((arg) => (typeof arg === 'function' ? arg() : arg));
  if (name !== '') said.unshift(`[${name}]`);
  console[level](...said);
}

export function logger(name = '') {
  if (typeof name !== 'string') throw new TypeError('the name of a logger is a text');
  return Object.freeze({
    name,
    debug(...args) { write(name, 'debug', args); },
    info(...args) { write(name, 'info', args); },
    warn(...args) { write(name, 'warn', args); },
    error(...args) { write(name, 'error', args); },
    child(part) { return logger(name === '' ? part : `${name}/${part}`); },
  });
}
