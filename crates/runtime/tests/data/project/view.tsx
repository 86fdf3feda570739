import { h, Fragment, createRoot, type Element } from 'alknet:core/ujsx';
import { jsonHost } from 'alknet:core/json-host';
import { computed, signal } from 'alknet:core/signals';
import type { Item } from './invoice.ts';

const Row = ({ item }: { item: Item }): Element => <li title={item.name}>{item.price}</li>;

export function show(items: readonly Item[]) {
  const shown = signal(items);
  const count = computed(() => shown.value.length);
  const root = createRoot(jsonHost);
  root.render(
    <ul>
      {items.map((item) => <Row item={item} />)}
      <>{count}</>
    </ul>,
  );
  shown.value = [];
  const tree: unknown = root.value;
  root.unmount();
  return tree;
}
