import { logger, setLevel } from 'alknet:core/logging';
import { topic, type Topic } from 'alknet:core/pubsub';

interface Order { id: number; price: number }

const orders: Topic<Order> = topic<Order>('orders');
const log = logger('orders').child('mail');

// With the types of an operation's schemas, without a call of it.
const prices: InputOf<'double'>[] = [];
const doubled = (input: InputOf<'double'>): OutputOf<'double'> => 2 * input.a;
const path: OperationPath = 'count';

setLevel('warn');
const stop = orders.subscribe(({ id, price }) => {
  log.info('not written', id);
  if (price > 10) log.warn('expensive', { id }, () => `costs ${price}`);
  prices.push({ a: price });
});

const heard = (async () => {
  const ids: number[] = [];
  for await (const { id } of orders) {
    ids.push(id);
    if (ids.length === 2) break;
  }
  return ids;
})();
const told = [{ id: 1, price: 5 }, { id: 2, price: 20 }].map((order) => orders.publish(order));
const ids = await heard;
stop();

export default { told, ids, after: orders.publish({ id: 3, price: 1 }), doubled: prices.map(doubled), path };
