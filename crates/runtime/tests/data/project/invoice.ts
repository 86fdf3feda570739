export interface Item {
  readonly name: string;
  readonly price: number;
  readonly count?: number;
}

export type Total = { net: number; gross: number };

export class Empty extends Error {
  override readonly name = 'Empty';
}

/** A generic, an overload, a tuple, an assertion: what types there are beyond the plain ones. */
export function largest<T>(values: readonly T[], by: (value: T) => number): T | undefined;
export function largest<T>(values: readonly T[], by: (value: T) => number): T | undefined {
  const rated = values.map((value): [T, number] => [value, by(value)]);
  return rated.toSorted(([, a], [, b]) => b - a)[0]?.[0];
}

export function total(items: readonly Item[], percent: number): Total {
  if (items.length === 0) throw new Empty('nothing to add up');
  const net = items.reduce((sum, { price, count = 1 }) => sum + price * count, 0);
  return { net, gross: net * (1 + percent / 100) } satisfies Total;
}
