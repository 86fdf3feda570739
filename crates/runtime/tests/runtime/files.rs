//! `alknet:core/fs`, against records of the operations that it calls.

use std::sync::{Arc, Mutex};

use alknet_runtime::{
    ConsoleLevel, EnvOperation, HostFuture, Isolate, IsolateHost, Items, OpError, OpReply,
    RecordedBytes, RecordedCall, Replay, ScriptCallOptions, ScriptRegistration,
};
use serde_json::{Value, json};

use crate::support::{RecordingHost, failure, main, modules, spec, value, wait};

const REPORT: &str = "docs:/2026/report.txt";

fn call(path: &str, input: Value, output: Value) -> RecordedCall {
    RecordedCall {
        path: path.to_owned(),
        input,
        output: Some(output),
        ..RecordedCall::default()
    }
}

/// A read of a file, in blocks of the content.
fn reading(input: Value, content: &'static [u8], blocks: &[(usize, usize)]) -> RecordedCall {
    let length: usize = blocks.iter().map(|(_, length)| length).sum();
    let mut items = vec![json!({ "size": content.len(), "length": length })];
    items.extend(
        blocks
            .iter()
            .map(|block| json!({ "bytes": { "$bin": block } })),
    );
    RecordedCall {
        bytes: Some(RecordedBytes(content.into())),
        ..call("fs/read", input, json!(items))
    }
}

/// Answers from a record, and notes what was asked.
struct NotingHost {
    replay: Replay,
    calls: Mutex<Vec<(String, Value)>>,
}

impl NotingHost {
    fn new(record: &[RecordedCall]) -> Arc<Self> {
        Arc::new(Self {
            replay: Replay::new(record, Arc::new(RecordingHost::default())),
            calls: Mutex::default(),
        })
    }

    fn note(&self, path: &str, input: &Value) {
        let mut calls = self.calls.lock().expect("no poison");
        calls.push((path.to_owned(), input.clone()));
    }

    fn paths(&self) -> Vec<String> {
        let calls = self.calls.lock().expect("no poison");
        calls.iter().map(|(path, _)| path.clone()).collect()
    }
}

impl IsolateHost for NotingHost {
    fn call(
        &self,
        path: &str,
        input: Value,
        options: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>> {
        self.note(path, &input);
        self.replay.call(path, input, options)
    }

    fn subscribe(&self, path: &str, input: Value, options: ScriptCallOptions) -> Items {
        self.note(path, &input);
        self.replay.subscribe(path, input, options)
    }

    fn list(&self, prefix: &str) -> Vec<EnvOperation> {
        self.replay.list(prefix)
    }

    fn register(
        &self,
        registration: ScriptRegistration,
        script: [u8; 32],
    ) -> HostFuture<Result<(), OpError>> {
        self.replay.register(registration, script)
    }

    fn emit(&self, entry: u64, item: Value) -> HostFuture<Result<(), OpError>> {
        self.replay.emit(entry, item)
    }

    fn log(&self, level: ConsoleLevel, text: &str) {
        self.replay.log(level, text);
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        self.replay.check(schema, value)
    }
}

/// The default export of a module whose calls these are the answers to.
#[track_caller]
fn replayed(source: &str, record: &[RecordedCall]) -> (Value, Arc<NotingHost>) {
    let host = NotingHost::new(record);
    let spec = modules(&[("./main.js", source)]);
    let mut isolate = Isolate::open(spec, Arc::clone(&host) as _).expect("an isolate");
    let ran = wait(isolate.run(main()));
    match ran.result {
        Ok(value) => (value, host),
        Err(failure) => panic!("{source}\n{failure}\n{:?}", failure.stack),
    }
}

fn entry(path: &str) -> Value {
    json!({ "path": path, "kind": "file", "mode": 420, "mtime_ms": 5, "seq": 7, "size": 5 })
}

/// The same as scripts have it.
fn shown(path: &str) -> Value {
    json!({ "path": path, "kind": "file", "mode": 420, "mtimeMs": 5, "seq": 7, "size": 5 })
}

/// What the project's module calls, in the forms of the operations.
fn project_record() -> Vec<RecordedCall> {
    let directory = "docs:/2026";
    let listed = |page: Option<&str>, names: &[&str], next: Option<&str>| {
        let mut input = json!({ "path": directory, "limit": 2 });
        let entries: Vec<_> = names.iter().copied().map(entry).collect();
        let mut output = json!({ "entries": entries });
        if let Some(page) = page {
            input["page"] = page.into();
        }
        if let Some(next) = next {
            output["next"] = next.into();
        }
        call("fs/list", input, output)
    };
    let written = |hash: &str| json!({ "hash": hash, "bytes": 5, "seq": 8 });
    let chunk = |session: &str, offset: u32, bytes: &str| {
        let input = json!({ "session": session, "offset": offset, "bytes": bytes });
        call("fs/write/chunk", input, json!({}))
    };
    vec![
        call(
            "fs/stat",
            json!({ "path": REPORT, "as_of": 7 }),
            entry("/2026/report.txt"),
        ),
        listed(None, &["/2026/a", "/2026/b"], Some("/2026/b")),
        listed(None, &["/2026/a", "/2026/b"], Some("/2026/b")),
        listed(Some("/2026/b"), &["/2026/c"], None),
        reading(json!({ "path": REPORT }), b"hello", &[(0, 3), (3, 2)]),
        reading(
            json!({ "path": REPORT, "offset": 1, "length": 3 }),
            b"hello",
            &[(1, 3)],
        ),
        reading(json!({ "path": REPORT }), b"hello", &[(0, 3), (3, 2)]),
        call(
            "fs/put",
            json!({ "path": "docs:/copy.txt", "bytes": "aGVsbG8=", "mode": 0o600, "if_none_match": "*" }),
            written("h1"),
        ),
        call(
            "fs/write/open",
            json!({ "path": "docs:/parts.txt", "mode": "create", "size": 4 }),
            json!({ "session": "s1" }),
        ),
        chunk("s1", 0, "YWI="),
        chunk("s1", 2, "Yw=="),
        chunk("s1", 3, "ZA=="),
        call(
            "fs/write/close",
            json!({ "session": "s1", "if_none_match": "*" }),
            written("h2"),
        ),
        call(
            "fs/write/open",
            json!({ "path": REPORT }),
            json!({ "session": "s2" }),
        ),
        chunk("s2", 0, "eA=="),
        call("fs/write/abort", json!({ "session": "s2" }), json!({})),
        call(
            "fs/watch",
            json!({ "path": directory, "cursor": 4, "topics": ["fs.put"] }),
            json!([
                { "id": 4, "topic": "watch.begin" },
                { "id": 9, "topic": "fs.put", "time_ms": 3, "path": "/2026/a" },
                { "id": 10, "topic": "fs.put", "time_ms": 4, "path": "/2026/b" },
            ]),
        ),
    ]
}

/// The module of the project that the compiler checks, too.
#[test]
fn the_files_of_the_project_are_read_written_and_watched() {
    let host = NotingHost::new(&project_record());
    let files = include_str!("../data/project/files.ts");
    let spec = modules(&[
        ("./main.js", "export { default } from './files.ts';"),
        ("./files.ts", files),
    ]);
    let mut isolate = Isolate::open(spec, Arc::clone(&host) as _).expect("an isolate");
    let ran = wait(isolate.run(main()));
    let expected = json!({
        "entry": shown("/2026/report.txt"),
        "page": { "entries": [shown("/2026/a"), shown("/2026/b")], "next": "/2026/b" },
        "names": ["/2026/a", "/2026/b", "/2026/c"],
        "text": "hello", "part": [101, 108, 108], "blocks": [3, 2],
        "failed": "no more parts",
        "events": [
            { "id": 4, "topic": "watch.begin" },
            { "id": 9, "topic": "fs.put", "timeMs": 3, "path": "/2026/a" },
        ],
        "hashes": ["h1", "h2"],
    });
    assert_eq!(ran.result, Ok(expected));
    // All of the record was asked for, and nothing besides.
    let recorded: Vec<_> = project_record().into_iter().map(|it| it.path).collect();
    assert_eq!(host.paths(), recorded);
}

/// A record may have the bytes of a block as base64 in its place, which is easier to write by hand.
#[test]
fn a_block_may_be_base64() {
    let items = json!([{ "length": 5 }, { "bytes": "aGVs" }, { "bytes": "bG8=" }]);
    let record = [call("fs/read", json!({ "path": REPORT }), items)];
    let source = format!(
        "import {{ readText }} from 'alknet:core/fs'; export default await readText('{REPORT}');"
    );
    assert_eq!(replayed(&source, &record).0, json!("hello"));
}

#[test]
fn a_long_content_goes_in_pieces_of_the_size_that_the_operation_takes() {
    let source = "
        import { write } from 'alknet:core/fs';
        const { seq } = await write('docs:/long', new Uint8Array(600 * 1024));
        export default seq;";
    let piece = |offset: usize, length: usize| {
        let bytes = zeros_in_base64(length);
        let input = json!({ "session": "s", "offset": offset, "bytes": bytes });
        call("fs/write/chunk", input, json!({}))
    };
    let record = [
        call(
            "fs/write/open",
            json!({ "path": "docs:/long", "size": 600 << 10 }),
            json!({ "session": "s" }),
        ),
        piece(0, 256 << 10),
        piece(256 << 10, 256 << 10),
        piece(512 << 10, 88 << 10),
        call(
            "fs/write/close",
            json!({ "session": "s" }),
            json!({ "hash": "h", "bytes": 600 << 10, "seq": 3 }),
        ),
    ];
    let (seq, host) = replayed(source, &record);
    assert_eq!(seq, json!(3));
    assert_eq!(host.paths().len(), record.len());
}

/// This many zeros.
fn zeros_in_base64(length: usize) -> String {
    let text = serde_json::to_value(RecordedBytes(vec![0; length].into())).expect("JSON");
    text.as_str().expect("text").to_owned()
}

/// Each use fails with one error, and calls nothing.
#[test]
fn wrong_use_gets_one_clear_error() {
    for (call, name, text) in [
        (
            "await stat(7)",
            "TypeError",
            "a path is a text such as docs:/2026/report.txt",
        ),
        (
            "await read('docs:/a', { lenght: 3 })",
            "TypeError",
            "read has no option lenght; its options are asOf, length, offset, peer, signal, timeoutMs",
        ),
        (
            "entries('docs:/a', { page: 'x' })",
            "TypeError",
            "entries has no option page; its options are asOf, limit, recursive, peer, signal, timeoutMs",
        ),
        (
            "watch('docs:/a', null)",
            "TypeError",
            "the options of watch are an object",
        ),
        (
            "await write('docs:/a', 7)",
            "TypeError",
            "what is written is a text, an ArrayBuffer or a view of one, or an iterable of these",
        ),
    ] {
        let source = format!(
            "import {{ entries, read, stat, watch, write }} from 'alknet:core/fs'; {call};"
        );
        let failed = failure(&source);
        assert_eq!(failed.name.as_deref(), Some(name), "{call}: {failed}");
        assert!(failed.to_string().contains(text), "{call}: {failed}");
        assert!(failed.operation.is_none(), "{call}: {failed}");
    }
}

#[test]
fn a_session_is_used_until_it_is_over() {
    let source = "
        import { open } from 'alknet:core/fs';
        const told = [];
        const tell = async (act) => { try { await act(); told.push('done'); } catch (error) { told.push(`${error.name}: ${error.message}`); } };
        const session = await open('docs:/a');
        await tell(() => session.writeAt(-1, 'x'));
        await tell(() => session.write({}));
        await tell(() => session.close({ ifmatch: 'x' }));
        await tell(() => session.close({ ifMatch: 'x' }));
        await tell(() => session.write('x'));
        await tell(() => session.close());
        await tell(() => session.abort());
        export default told;";
    let conflict = RecordedCall {
        error: Some(OpError::new("CONFLICT", "another content is there")),
        ..call(
            "fs/write/close",
            json!({ "session": "s", "if_match": "x" }),
            Value::Null,
        )
    };
    let record = [
        call(
            "fs/write/open",
            json!({ "path": "docs:/a" }),
            json!({ "session": "s" }),
        ),
        conflict,
    ];
    let over = "TypeError: the write session of docs:/a is over";
    let expected = json!([
        "RangeError: an offset is a whole number of 0 or more",
        "TypeError: data is a text, an ArrayBuffer or a view of one",
        "TypeError: close has no option ifmatch; its options are ifMatch, ifNoneMatch, peer, signal, timeoutMs",
        "OpError: another content is there",
        over,
        over,
        "done",
    ]);
    let (told, host) = replayed(source, &record);
    assert_eq!(told, expected);
    assert_eq!(host.paths(), ["fs/write/open", "fs/write/close"]);
}

/// Reading it at once would fill the heap, which ends the session.
#[test]
fn a_long_content_is_refused_before_its_first_block() {
    let items = json!([{ "length": (16 << 20) + 1 }, { "bytes": "AA==" }]);
    let record = [call("fs/read", json!({ "path": REPORT }), items)];
    let source = format!(
        "import {{ read }} from 'alknet:core/fs';
        export default await read('{REPORT}').catch((error) => [error.name, error.message]);"
    );
    let text = format!(
        "read takes at most 16777216 bytes, and {REPORT} has 16777217 in the range; use readBlocks"
    );
    assert_eq!(replayed(&source, &record).0, json!(["RangeError", text]));
}

/// The module adds no right: it has what `ops` has, and fails as a call by `ops` does.
#[test]
fn an_operation_that_the_session_may_not_call_is_not_there() {
    let source = "
        import { stat } from 'alknet:core/fs';
        const code = (promise) => promise.catch((error) => [error instanceof OpError, error.code, error.path]);
        export default [await code(stat('docs:/a')), await code(ops.call('fs/stat', { path: 'docs:/a' }))];";
    let refused = json!([true, "NOT_FOUND", "fs/stat"]);
    assert_eq!(value(source), json!([refused, refused]));
    // Where nothing can be called, nothing can be called by the module either.
    let denied = "
        import { watch } from 'alknet:core/fs';
        let code;
        try { await ops.pure(() => watch('docs:/a').next()); } catch (error) { code = error.code; }
        export default code;";
    assert_eq!(value(denied), json!("E_DENIED"));
}

/// A watch waits for events that may never come, and its loop can be left all the same.
#[test]
fn a_watch_ends_while_it_waits() {
    let mut isolate = Isolate::open(
        spec(
            "import { watch } from 'alknet:core/fs';
            const events = watch('docs:/a');
            const asked = events.next();
            const left = await events.return('left');
            export default [left, (await events.next()).done];",
        ),
        Arc::new(SilentHost),
    )
    .expect("an isolate");
    let ran = wait(isolate.run(main()));
    let expected = json!([{ "done": true, "value": "left" }, true]);
    assert_eq!(ran.result, Ok(expected));
}

/// Subscriptions of it have no items and no end.
struct SilentHost;

impl IsolateHost for SilentHost {
    fn call(
        &self,
        _: &str,
        _: Value,
        _: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>> {
        Box::pin(std::future::pending())
    }

    fn subscribe(&self, _: &str, _: Value, _: ScriptCallOptions) -> Items {
        Box::pin(futures_util::stream::pending())
    }

    fn list(&self, _: &str) -> Vec<EnvOperation> {
        Vec::new()
    }

    fn register(&self, _: ScriptRegistration, _: [u8; 32]) -> HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> HostFuture<Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: ConsoleLevel, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> Result<(), String> {
        Ok(())
    }
}
