// What a script of this session can use. Written by `alknet`; changes here are lost.

type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
type JsonSchema = boolean | { [word: string]: unknown };

interface CallOptions {
  /** The peer that shall answer. */
  peer?: string;
  timeoutMs?: number;
  signal?: AbortSignal;
  idempotencyKey?: string;
}

interface OperationInfo {
  path: string;
  kind: "query" | "mutation" | "subscription";
  input: JsonSchema;
  output: JsonSchema;
  description: string;
}

interface OperationSpec {
  /** Called by others as `js/<name>`. */
  name: string;
  input?: JsonSchema;
  output?: JsonSchema;
  errors?: { [code: string]: JsonSchema };
  uses?: string[];
  kind: "query" | "mutation" | "subscription";
  description?: string;
}

interface HandlerContext {
  signal: AbortSignal;
}

interface RecordedCall {
  path: string;
  input?: unknown;
  output?: unknown;
  /** base64; `{ "$bin": [offset, length] }` in `output` points into it. */
  bytes?: string;
  error?: { code: string; message: string; retryable?: boolean; details?: unknown };
}

interface TestCase {
  name?: string;
  input?: unknown;
  calls?: RecordedCall[];
  expect: { output: unknown } | { error: string } | { schema: JsonSchema };
}

interface TestReport {
  name: string;
  passed: boolean;
  cases: { name: string; passed: boolean; reason: string | null; fuel: number }[];
  fuel: { p50: number; p99: number };
  uncovered: string[];
}

interface Ops {
  call<P extends keyof AlknetCalls>(path: P, input: AlknetCalls[P]["input"], options?: CallOptions): Promise<AlknetCalls[P]["output"]>;
  /** One that is not listed. */
  call<P extends string>(path: P extends keyof AlknetCalls ? never : P, input?: unknown, options?: CallOptions): Promise<any>;
  subscribe<P extends keyof AlknetSubscriptions>(path: P, input: AlknetSubscriptions[P]["input"], options?: CallOptions): AsyncIterableIterator<AlknetSubscriptions[P]["output"]>;
  subscribe<P extends string>(path: P extends keyof AlknetSubscriptions ? never : P, input?: unknown, options?: CallOptions): AsyncIterableIterator<any>;
  list(prefix?: string): OperationInfo[];
  schema(path: string): { input: JsonSchema; output: JsonSchema };
  register<I = any, O = any>(spec: OperationSpec, handler: (input: I, context: HandlerContext) => O | Promise<O> | AsyncIterable<O>): Promise<void>;
  test(name: string, cases: TestCase[]): Promise<TestReport>;
  /** Runs `f` while nothing can be called. */
  pure<A extends unknown[], R>(f: (...args: A) => R, ...args: A): R;
  /** Fires when the session's call is aborted. */
  readonly signal: AbortSignal;
}

declare const ops: Ops;

/** An operation that the session may call, or subscribe to. */
type OperationPath = keyof AlknetCalls | keyof AlknetSubscriptions;
/** What is known of it. */
type OperationTypes<P extends OperationPath> =
  P extends keyof AlknetCalls ? AlknetCalls[P] : P extends keyof AlknetSubscriptions ? AlknetSubscriptions[P] : never;
/** What it takes. */
type InputOf<P extends OperationPath> = OperationTypes<P> extends { input: infer I } ? I : never;
/** What it answers; of a subscription, each item. */
type OutputOf<P extends OperationPath> = OperationTypes<P> extends { output: infer O } ? O : never;

interface Capability {
  readonly name: string;
  readonly kind: "aead" | "api-key" | "basic" | "bearer" | "bytes" | "signer";
}
interface Signer extends Capability {
  readonly kind: "signer";
  /** Ed25519, 32 bytes. */
  readonly publicKey: ArrayBuffer;
  /** A signature of RFC 8032, 64 bytes. */
  sign(data: ArrayBuffer | ArrayBufferView): Promise<ArrayBuffer>;
}
interface Aead extends Capability {
  readonly kind: "aead";
  /** Opens under the same label only. */
  seal(label: string, data: ArrayBuffer | ArrayBufferView): Promise<ArrayBuffer>;
  open(label: string, sealed: ArrayBuffer | ArrayBufferView): Promise<ArrayBuffer>;
}
declare const capabilities: {
  /** What the operation that runs the script was given, or an `OpError` with the code `FORBIDDEN`. */
  get<C extends Capability = Capability>(name: string): Promise<C>;
};

declare class OpError extends Error {
  constructor(code: string, message?: string, options?: { retryable?: boolean; details?: unknown; path?: string });
  code: string;
  retryable: boolean;
  details: any;
  path: string;
}

declare class RuntimeError extends Error {
  private constructor();
  code: `E_${string}`;
}

declare const console: Record<"assert" | "debug" | "dir" | "error" | "info" | "log" | "trace" | "warn", (...args: unknown[]) => void>;
declare function structuredClone<T>(value: T, options?: { transfer?: ArrayBuffer[] }): T;
declare function queueMicrotask(callback: () => void): void;
declare function setTimeout<A extends unknown[]>(callback: (...args: A) => void, ms?: number, ...args: A): number;
declare function clearTimeout(id: number | undefined): void;

interface AbortSignal {
  readonly aborted: boolean;
  readonly reason: any;
  onabort: ((event: { type: "abort" }) => void) | null;
  throwIfAborted(): void;
  addEventListener(type: "abort", listener: (event: { type: "abort" }) => void, options?: { once?: boolean }): void;
  removeEventListener(type: "abort", listener: (event: { type: "abort" }) => void): void;
}
declare const AbortSignal: {
  prototype: AbortSignal;
  abort(reason?: unknown): AbortSignal;
  timeout(ms: number): AbortSignal;
  any(signals: Iterable<AbortSignal>): AbortSignal;
};
declare class AbortController {
  readonly signal: AbortSignal;
  abort(reason?: unknown): void;
}
declare class DOMException extends Error {
  constructor(message?: string, name?: string);
  readonly code: number;
}

declare class TextEncoder {
  readonly encoding: "utf-8";
  encode(text?: string): Uint8Array<ArrayBuffer>;
  encodeInto(text: string, target: Uint8Array): { read: number; written: number };
}
declare class TextDecoder {
  constructor(label?: "utf-8", options?: { fatal?: boolean; ignoreBOM?: boolean });
  readonly encoding: "utf-8";
  readonly fatal: boolean;
  readonly ignoreBOM: boolean;
  decode(data?: ArrayBuffer | ArrayBufferView, options?: { stream?: boolean }): string;
}
declare const crypto: {
  getRandomValues<T extends ArrayBufferView>(array: T): T;
  subtle: {
    digest(algorithm: "SHA-256" | "SHA-384" | "SHA-512" | { name: string }, data: ArrayBuffer | ArrayBufferView): Promise<ArrayBuffer>;
  };
};

interface URLSearchParams extends Iterable<[string, string]> {
  readonly size: number;
  append(name: string, value: string): void;
  delete(name: string): void;
  get(name: string): string | null;
  getAll(name: string): string[];
  has(name: string): boolean;
  set(name: string, value: string): void;
  sort(): void;
  toString(): string;
}
declare class URL {
  constructor(url: string, base?: string);
  static canParse(url: string, base?: string): boolean;
  static parse(url: string, base?: string): URL | null;
  hash: string;
  host: string;
  hostname: string;
  href: string;
  password: string;
  pathname: string;
  port: string;
  protocol: string;
  search: string;
  username: string;
  readonly origin: string;
  readonly searchParams: URLSearchParams;
  toJSON(): string;
}

declare module "alknet:core/signals" {
  interface ReadonlySignal<T> { readonly value: T; peek(): T }
  interface Signal<T> { value: T; peek(): T }
  export function signal<T>(value: T): Signal<T>;
  export function computed<T>(compute: () => T): ReadonlySignal<T>;
  export function effect(run: () => void | (() => void)): () => void;
  export function batch<T>(run: () => T): T;
  export function untracked<T>(run: () => T): T;
  export function isSignal(value: unknown): boolean;
}
declare module "alknet:core/pubsub" {
  /** A loop over it hears what is published from its beginning on. */
  interface Topic<T> extends AsyncIterable<T> {
    readonly name: string;
    /** Calls every listener, and returns how many it called. */
    publish(value: T): number;
    subscribe(listener: (value: T) => void, options?: { signal?: AbortSignal }): () => void;
  }
  /** The one of this name. */
  export function topic<T = any>(name: string): Topic<T>;
}
declare module "alknet:core/logging" {
  type Level = "debug" | "info" | "warn" | "error";
  interface Logger extends Readonly<Record<Level, (...args: unknown[]) => void>> {
    readonly name: string;
    child(part: string): Logger;
  }
  export function logger(name?: string): Logger;
  export function setLevel(name: Level | "none"): void;
  export function getLevel(): Level | "none";
}
declare module "alknet:core/ujsx" {
  export type Element = { readonly type: unknown; readonly props: Record<string, any> };
  /** What `<>` becomes. */
  export const Fragment: any;
  export function h(type: any, props: Record<string, any> | null, ...children: any[]): Element;
  export function isElement(value: unknown): value is Element;
  export interface Host<N, R> {
    element(type: string, props: Record<string, any>, children: N[]): N;
    text(value: string | number): N;
    root(children: N[]): R;
  }
  export function createRoot<N, R>(host: Host<N, R>): { render(element: Element): R; readonly value: R; unmount(): void };
}
declare module "alknet:core/json-host" {
  export const jsonHost: import("alknet:core/ujsx").Host<any, any>;
}
declare module "alknet:core/layout-host" {
  import type { Element, Host } from "alknet:core/ujsx";
  export interface Layout {
    /** The text of `mt.schema` as JSON; null where there are no records. */
    readonly schema: Record<string, any> | null;
    /** `mt.index`, with element types and shapes. */
    readonly index: { tensors: Record<string, any>; order: string[]; root: Record<string, any> };
  }
  export interface Change { op: "add" | "remove" | "retype" | "reshape"; path: string; from?: string; to?: string }
  export const layoutHost: Host<any, Layout>;
  export const Struct: any, Field: any, Tensor: any, Blob: any, ArrayOf: any;
  export function layout(element: Element): Layout;
  export function diff(before: Layout, after: Layout): Change[];
  export { h } from "alknet:core/ujsx";
}
declare module "alknet:core/fs" {
  type FsCallOptions = Omit<CallOptions, "idempotencyKey">;
  type FsData = string | ArrayBuffer | ArrayBufferView;
  interface FsVersionOptions extends FsCallOptions {
    /** Number of a commit: the entry as it was after it. */
    asOf?: number;
  }
  interface FsRangeOptions extends FsVersionOptions { offset?: number; length?: number }
  interface FsListOptions extends FsVersionOptions {
    /** With what is below its directories. */
    recursive?: boolean;
    /** Most entries of a page, at most 1000. */
    limit?: number;
  }
  interface FsConditions {
    /** The hash of the present content, or `*` for any entry. */
    ifMatch?: string;
    /** Nothing may be there. */
    ifNoneMatch?: "*";
  }
  interface FsWriteOptions extends FsCallOptions, FsConditions {
    /** Permission bits. */
    fileMode?: number;
    mtimeMs?: number;
    lockTokens?: string[];
  }
  export interface Entry {
    /** In its bucket. */
    readonly path: string;
    readonly kind: "directory" | "file" | "symlink";
    /** BLAKE3 of a file's content, 64 hexadecimal digits. */
    readonly hash?: string;
    readonly size?: number;
    readonly mode: number;
    readonly mtimeMs: number;
    /** Of a symbolic link. */
    readonly target?: string;
    /** Number of the commit that wrote it. */
    readonly seq: number;
  }
  export interface FsEvent {
    /** The `cursor` that resumes behind it. */
    readonly id: number;
    /** `watch.begin` comes first, and is no event. */
    readonly topic: string;
    readonly timeMs?: number;
    readonly bucket?: string;
    readonly branch?: string;
    readonly seq?: number;
    readonly path?: string;
    readonly to?: string;
    readonly kind?: string;
    readonly hash?: string;
    readonly size?: number;
    readonly actor?: string;
  }
  export interface Written { readonly hash: string; readonly bytes: number; readonly seq: number }
  export interface WriteSession {
    readonly path: string;
    /** Behind what `write` wrote before. */
    write(data: FsData): Promise<void>;
    writeAt(offset: number, data: FsData): Promise<void>;
    /** Makes the file; the session is over also if this fails. */
    close(options?: FsConditions): Promise<Written>;
    /** Leaves the file as it was. Does nothing once the session is over. */
    abort(): Promise<void>;
  }
  /** A path is `bucket[@branch][#seq]:/path`. */
  export function stat(path: string, options?: FsVersionOptions): Promise<Entry>;
  /** One page; `next` is the `page` of the next one. */
  export function list(path: string, options?: FsListOptions & { page?: string }): Promise<{ entries: Entry[]; next?: string }>;
  /** All of them, page by page. */
  export function entries(path: string, options?: FsListOptions): AsyncIterableIterator<Entry>;
  /** At most 16 MiB. */
  export function read(path: string, options?: FsRangeOptions): Promise<Uint8Array<ArrayBuffer>>;
  /** At most 16 MiB of UTF-8. */
  export function readText(path: string, options?: FsRangeOptions): Promise<string>;
  export function readBlocks(path: string, options?: FsRangeOptions): AsyncIterableIterator<Uint8Array<ArrayBuffer>>;
  export function write(path: string, data: FsData | Iterable<FsData> | AsyncIterable<FsData>, options?: FsWriteOptions): Promise<Written>;
  /** `truncate` without a mode; `size` is that of the content, and another one is refused. */
  export function open(path: string, options?: FsWriteOptions & { mode?: "create" | "truncate" | "modify" | "append"; size?: number }): Promise<WriteSession>;
  /** From now on without a `cursor`. */
  export function watch(path: string, options?: FsCallOptions & { cursor?: number; topics?: string[]; allBranches?: boolean }): AsyncIterableIterator<FsEvent>;
}
declare module "alknet:core/ops-host" {
  import type { Element, Host } from "alknet:core/ujsx";
  export const opsHost: Host<any, any>;
  export const Operation: any, Sequential: any, Parallel: any, Conditional: any, Map: any;
  export function plan(element: Element): any;
  export function run(element: Element, options?: { signal?: AbortSignal }): Promise<{ answer: any; results: Record<string, any> }>;
  export { h } from "alknet:core/ujsx";
}
declare namespace JSX {
  type Element = import("alknet:core/ujsx").Element;
  interface IntrinsicElements { [name: string]: any }
}
