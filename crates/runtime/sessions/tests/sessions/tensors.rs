//! `gpu` and `tensor`: what scripts make of the operations behind them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex};

use alknet_call::{
    CallBody, CallError, CallOutput, Env, HandlerKind, OperationSpec, Provenance, Registration,
};
use alknet_core::BoxFuture;
use alknet_runtime::{IsolateWork, ModuleSet, RuntimeCode, SessionMode};
use alknet_sessions::{ScriptSession, SessionGrants, SessionSpec, SessionsConfig, TensorFiles};
use alknet_worker::WorkerEndReason;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{SessionLab, code, export, identity, soon, spec, spec_of, until};

/// Type, shape and bytes.
type HeldTensor = (String, Vec<u64>, Vec<u8>);

/// What the real operations answer inline unless told otherwise, and give in one read.
const INLINE_BYTES_MAX: usize = 64 << 10;
const READ_BYTES_MAX: usize = 16 << 20;

/// Handles and what they hold, in the place of a GPU.
#[derive(Default)]
pub(crate) struct FakeTensorTable {
    held: Mutex<BTreeMap<String, HeldTensor>>,
    requests: Mutex<Vec<Value>>,
}

fn registration(
    name: &str,
    tensor_table: &Arc<FakeTensorTable>,
    work: fn(&FakeTensorTable, &CallBody) -> Result<CallOutput, CallError>,
) -> Registration {
    let tensor_table = Arc::clone(tensor_table);
    let handler = HandlerKind::once(move |input: CallBody, _| {
        let answer = work(&tensor_table, &input);
        async move { answer }
    });
    Registration::new(OperationSpec::query(name, "For tests."), handler)
}

pub(crate) fn operations(tensor_table: &Arc<FakeTensorTable>) -> Vec<Registration> {
    vec![
        registration("compute/info", tensor_table, |_, _| {
            Ok(json!({ "state": "ready" }).into())
        }),
        registration("compute/dispatch", tensor_table, |tensor_table, input| {
            tensor_table
                .requests
                .lock()
                .expect("no panic")
                .push(input.value().clone());
            Ok(tensor_table.doubled(input.value()))
        }),
        registration("tensor/create", tensor_table, |tensor_table, input| {
            let value = input.value();
            let shape: Vec<u64> = serde_json::from_value(value["shape"].clone()).expect("a shape");
            let dtype = value["dtype"].as_str().expect("a type");
            let bytes = shape.iter().product::<u64>() * if dtype == "U8" { 1 } else { 4 };
            let handle = format!("h{}", tensor_table.held.lock().expect("no panic").len());
            tensor_table.put(&handle, dtype, shape, vec![0; bytes as usize]);
            Ok(json!({ "handle": handle, "expires_ms": 60000 }).into())
        }),
        registration("tensor/write", tensor_table, |tensor_table, input| {
            let value = input.value();
            let new = input
                .binary(&value["bytes"])
                .expect("bytes beside the input");
            let mut held = tensor_table.held.lock().expect("no panic");
            let (_, shape, bytes) = held
                .get_mut(value["handle"].as_str().expect("a handle"))
                .ok_or_else(|| CallError::not_found("handle"))?;
            let row = bytes.len() / shape.first().map_or(1, |rows| *rows as usize);
            let at = value["rows"][0].as_u64().unwrap_or(0) as usize * row;
            bytes[at..at + new.len()].copy_from_slice(&new);
            Ok(json!({}).into())
        }),
        registration("tensor/read", tensor_table, |tensor_table, input| {
            tensor_table.read(input.value())
        }),
        registration("tensor/drop", tensor_table, |tensor_table, input| {
            let handle = input.value()["handle"].as_str().expect("a handle");
            tensor_table.held.lock().expect("no panic").remove(handle);
            Ok(json!({}).into())
        }),
    ]
}

impl FakeTensorTable {
    fn put(&self, handle: &str, dtype: &str, shape: Vec<u64>, bytes: Vec<u8>) {
        let held = (dtype.to_owned(), shape, bytes);
        self.held
            .lock()
            .expect("no panic")
            .insert(handle.to_owned(), held);
    }

    /// Doubles the numbers of the first binding into the one that comes out, whatever the shader says.
    fn doubled(&self, input: &Value) -> CallOutput {
        let bindings = input["bindings"].as_array().expect("bindings");
        let handle = bindings[0]["arg"]["handle"].as_str().expect("a handle");
        let held = self.held.lock().expect("no panic");
        let (words, _) = held[handle].2.as_chunks::<4>();
        let double = |word: &[u8; 4]| (2.0 * f32::from_le_bytes(*word)).to_le_bytes();
        let mut bytes: Vec<u8> = words.iter().flat_map(double).collect();
        let name = format!("h{}", held.len());
        drop(held);
        let result = bindings.iter().find(|binding| binding["out"].is_object());
        let result = result.expect("one that comes out");
        let (number, out) = (result["binding"].to_string(), &result["out"]);
        let shape: Vec<u64> = serde_json::from_value(out["shape"].clone()).expect("a shape");
        bytes.resize(4 * shape.iter().product::<u64>() as usize, 0);
        let short = bytes.len() <= INLINE_BYTES_MAX && out["as"] != "handle";
        let mut tensor = json!({ "dtype": out["dtype"], "shape": shape });
        let mut tail = Vec::new();
        if short {
            tensor["inline"] = json!({ "$bin": [0, bytes.len()] });
            tail = bytes;
        } else {
            tensor["handle"] = name.as_str().into();
            tensor["expires_ms"] = 60_000.into();
            self.put(&name, "F32", shape, bytes);
        }
        let answer = json!({ "outputs": { number: tensor }, "gpu_ms": 0.5, "jit_ms": 1 });
        CallOutput::Mixed(answer, tail.into())
    }

    fn read(&self, input: &Value) -> Result<CallOutput, CallError> {
        let held = self.held.lock().expect("no panic");
        let (dtype, shape, bytes) = held
            .get(input["handle"].as_str().expect("a handle"))
            .ok_or_else(|| CallError::not_found("handle"))?;
        let mut shape = shape.clone();
        let row = bytes.len() / shape[0] as usize;
        let [from, to] = match &input["rows"] {
            Value::Null => [0, shape[0]],
            rows => serde_json::from_value(rows.clone()).expect("two numbers"),
        };
        let part = bytes.get(from as usize * row..to as usize * row);
        let part = part.filter(|part| part.len() <= READ_BYTES_MAX);
        let part = part.ok_or_else(|| CallError::invalid_input("no rows, or too many"))?;
        shape[0] = to - from;
        let value = json!({ "dtype": dtype, "shape": shape, "bytes": { "$bin": [0, part.len()] } });
        Ok(CallOutput::Mixed(value, Bytes::copy_from_slice(part)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shaders_are_run_by_operations() {
    let tensor_table = Arc::default();
    let lab = SessionLab::with(SessionsConfig::default(), operations(&tensor_table));
    let source = "const { state } = await gpu.adapter;
        const module = gpu.module('// wgsl');
        const input = await gpu.buffer(new Float32Array([1, 2, 3]));
        const zeros = await gpu.buffer(8);
        const { outputs, gpu_ms } = await gpu.dispatch(module, 'main', [
            { binding: 0, access: 'read', arg: input },
            { binding: 1, out: { dtype: 'F32', shape: [2] } },
        ], [4]);
        const out = new Float32Array(await gpu.read(outputs[1]));
        const again = await gpu.dispatch(module, 'main', [
            { binding: 0, access: 'read', arg: outputs[1] },
            { binding: 3, out: { dtype: 'F32', shape: [2], as: 'inline' } },
        ]);
        const now = [...new Float32Array(again.outputs[3].inline)];
        const back = new Float32Array(await input.read());
        const many = await gpu.buffer(new Uint8Array(1_500_000).fill(7));
        const all = new Uint8Array(await many.read());
        await input.dispose();
        let after; try { await input.read(); } catch (e) { after = e.code; }
        let data; try { zeros.data(); } catch (e) { data = e.name; }
        export default [state, gpu_ms, [...out], now, [...back], input.dtype, [...input.shape],
            all.length, all.every((b) => b === 7), after, data, (await zeros.read()).byteLength]";
    let mut spec = spec(source);
    spec.grants = SessionGrants::to(["compute/*", "tensor/*"]);
    let value = lab.run(spec).await.expect("a value").value;
    let expected = json!([
        "ready",
        0.5,
        [2, 4],
        [4, 8],
        [1, 2, 3],
        "F32",
        [3],
        1_500_000,
        true,
        "E_DISPOSED",
        "TypeError",
        8
    ]);
    assert_eq!(value, expected);
    let requests = tensor_table.requests.lock().expect("no panic")[0].clone();
    let expected = json!({
        "wgsl": "// wgsl", "entry": "main", "groups": [4, 1, 1],
        "bindings": [
            { "binding": 0, "access": "read", "arg": { "handle": "h0" } },
            { "binding": 1, "out": { "dtype": "F32", "shape": [2], "as": "handle" } },
        ],
    });
    assert_eq!(requests, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_long_is_written_and_read_in_parts() {
    let lab = SessionLab::with(SessionsConfig::default(), operations(&Arc::default()));
    let source = "const length = 2 ** 22 + 3, marks = [0, 2 ** 22 - 1, 2 ** 22, length - 1];
        const given = new Uint32Array(length);
        marks.forEach((at, mark) => { given[at] = mark + 1; });
        const long = await gpu.buffer(given);
        const all = new Uint32Array(await gpu.read(long));
        const rest = new Uint32Array(await long.read([1, length]));
        let refused; try { await long.read([0, length + 1]); } catch (e) { refused = e.code; }
        export default [all.length, marks.map((at) => all[at]), rest.length,
            marks.slice(1).map((at) => rest[at - 1]), refused]";
    let mut spec = spec(source);
    spec.grants = SessionGrants::to(["compute/*", "tensor/*"]);
    let value = lab.run(spec).await.expect("a value").value;
    let length = (1 << 22) + 3;
    let expected = json!([length, [1, 2, 3, 4], length - 1, [2, 3, 4], "INVALID_INPUT"]);
    assert_eq!(value, expected);
}

/// A file of the level that every reader understands.
fn container() -> Vec<u8> {
    let header = json!({
        "__metadata__": { "a": "b" },
        "rows": { "dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24] },
        "brain": { "dtype": "BF16", "shape": [2], "data_offsets": [24, 28] },
        "odd": { "dtype": "U8", "shape": [1], "data_offsets": [28, 29] },
        "unaligned": { "dtype": "I32", "shape": [1], "data_offsets": [29, 33] },
        "lies": { "dtype": "F64", "shape": [9], "data_offsets": [29, 33] },
        "outside": { "dtype": "U8", "shape": [9], "data_offsets": [29, 3300] },
    });
    let mut text = header.to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    for n in 0..6 {
        bytes.extend((n as f32).to_le_bytes());
    }
    bytes.extend([0x80, 0x3f, 0x00, 0xc0, 9]);
    bytes.extend((-5_i32).to_le_bytes());
    bytes
}

struct FolderFiles(Arc<tempfile::TempDir>);

impl TensorFiles for FolderFiles {
    fn open(&self, env: &Env, src: Value) -> BoxFuture<'static, Result<File, CallError>> {
        // The caller, and the session that calls for it.
        assert_eq!(env.identity().expect("an identity").id.to_string(), "lab");
        let session = env.authority().expect("a session's");
        assert_eq!(&*session.label, "script of tenant");
        let file = match src["path"].as_str() {
            Some("m.mt") => File::open(self.0.path().join("m.mt")),
            _ => return Box::pin(async { Err(CallError::not_found("tensor/open")) }),
        };
        Box::pin(async { file.map_err(|error| CallError::internal(error.to_string())) })
    }
}

pub(crate) fn stored() -> SessionLab {
    stored_in(Arc::new(tempfile::tempdir().expect("a folder")), Vec::new())
}

/// A store in this folder, and further operations.
fn stored_in(folder: Arc<tempfile::TempDir>, mut more: Vec<Registration>) -> SessionLab {
    let open = HandlerKind::once(|input: CallBody, _| async move {
        let names = ["rows", "brain", "odd", "unaligned", "lies", "outside"];
        let tensors: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        match input.value()["src"]["path"].as_str() {
            Some("m.mt" | "gone") => Ok(json!({ "id": "00", "tensors": tensors })),
            _ => Err(CallError::not_found("tensor/open")),
        }
    });
    more.push(Registration::new(opens(), open));
    with_files(folder, more)
}

fn opens() -> OperationSpec {
    OperationSpec::query("tensor/open", "For tests.")
}

/// A node with a store in this folder, and these operations.
fn with_files(folder: Arc<tempfile::TempDir>, operations: Vec<Registration>) -> SessionLab {
    let mut file = File::create(folder.path().join("m.mt")).expect("a file");
    file.write_all(&container()).expect("written");
    let config = SessionsConfig {
        files: Some(Arc::new(FolderFiles(folder))),
        ..SessionsConfig::default()
    };
    SessionLab::with(config, operations)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_tensor_is_seen_where_it_lies() {
    let lab = stored();
    let source = "const file = await tensor.open({ path: 'm.mt' });
        const rows = file.view('rows'), last = rows.slice(-1), flat = rows.reshape([6]);
        rows.data()[0] = 99;
        let fills; try { rows.data().fill(1); fills = 'done'; } catch (e) { fills = e.name; }
        const odd = file.view('unaligned'), brain = [...file.view('brain').toF32()];
        const codes = [];
        for (const name of ['nowhere', '__metadata__', 'lies', 'outside']) {
            try { file.view(name); } catch (e) { codes.push(e.code); }
        }
        file.close();
        try { file.view('rows'); } catch (e) { codes.push(e.code); }
        try { flat.reshape([5]); } catch (e) { codes.push(e.name); }
        export default { names: file.names().length, id: file.info.id, shape: rows.shape,
            strides: rows.strides, last: [...last.data()], flat: [...flat.data()], fills,
            readonly: rows.readonly, brain,
            odd: [...odd.data()], copied: [rows.copied, odd.copied], codes }";
    let mut spec = spec(source);
    spec.grants = SessionGrants::to(["tensor/*"]);
    let value = lab.run(spec).await.expect("a value").value;
    let expected = json!({
        "names": 6, "id": "00", "shape": [3, 2], "strides": [2, 1], "last": [4, 5],
        "flat": [0, 1, 2, 3, 4, 5], "fills": "TypeError", "readonly": true, "brain": [1, -2],
        "odd": [-5], "copied": [false, true],
        "codes": ["E_NOTFOUND", "E_NOTFOUND", "TENSOR_INVALID", "TENSOR_INVALID", "E_DISPOSED",
            "RangeError"],
    });
    assert_eq!(value, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_of_a_script_s_own_need_no_store() {
    let lab = stored();
    let source = "const t = tensor.from(new Int16Array([1, 2, 3, 4]), [2, 2]);
        const z = tensor.alloc('BF16', [2]); z.data().set([0x80, 0x3f, 0x00, 0xc0]);
        const e = tensor.alloc('F8_E4M3', [3]); e.data().set([0x38, 0x7f, 0xc0]);
        t.slice(1).data()[0] = 9;
        const codes = [];
        for (const f of [() => tensor.alloc('F3', [1]), () => tensor.alloc('U8', [-1]),
            () => tensor.from([1]), () => tensor.alloc('F64', [2 ** 40])]) {
            try { f(); } catch (e) { codes.push(e.name); }
        }
        t.dispose(); try { t.data(); } catch (e) { codes.push(e.code); }
        try { await z.toGPU(); } catch (e) { codes.push(e.code); }
        export default [t.dtype, [...z.toF32()], [...e.toF32()].map(String), typeof gpu, codes]";
    let mut own = spec(source);
    own.grants = SessionGrants::to(["tensor/open"]);
    let value = lab.run(own).await.expect("a value").value;
    let expected = json!([
        "I16",
        [1, -2],
        ["1", "NaN", "-2"],
        "undefined",
        [
            "RangeError",
            "RangeError",
            "TypeError",
            "RangeError",
            "E_DISPOSED",
            "E_DENIED"
        ]
    ]);
    assert_eq!(value, expected);
    // Neither what is not there nor what is not granted.
    for (path, grant, expected) in [
        ("nowhere", "tensor/open", "NOT_FOUND"),
        ("gone", "tensor/open", "NOT_FOUND"),
    ] {
        let mut wrong = spec(&format!("await tensor.open({{ path: '{path}' }})"));
        wrong.grants = SessionGrants::to([grant]);
        let failure = lab.run(wrong).await.expect_err("no file");
        assert_eq!(failure.operation.expect("an operation's").code, expected);
    }
    let ungranted = spec("tensor.open({ path: 'm.mt' })");
    assert_eq!(code(lab.run(ungranted).await), RuntimeCode::Exception);
}

/// `tensor/open` is that of a peer, which says yes to everything: it does not decide who reads a file of this node.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_this_node_is_mapped_for_what_a_peer_says() {
    let yes = HandlerKind::once(|_: CallBody, _| async move {
        Ok(json!({ "id": "00", "tensors": [{ "name": "rows" }] }))
    });
    let yes = Registration::imported(opens(), yes, Provenance::FromCall);
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let lab = with_files(folder, vec![yes]);
    let mut maps = spec(
        "const file = await tensor.open({ path: 'm.mt' });
        export default [...file.view('rows').data()]",
    );
    maps.grants = SessionGrants::to(["tensor/open"]);
    let failure = lab.run(maps).await.expect_err("a peer said yes");
    let failed = failure.operation.expect("an operation's");
    assert_eq!(failed.code, "INVALID_INPUT");
    let why = "only tensors of this node can be mapped";
    assert!(failed.message.contains(why), "{}", failed.message);
    // What it answers is a value like any other.
    let mut asks = spec("export default (await ops.call('tensor/open', { src: {} })).id");
    asks.grants = SessionGrants::to(["tensor/open"]);
    assert_eq!(lab.run(asks).await.expect("a value").value, "00");
}

/// Files of a store never shrink. Where a disk loses one all the same, only the worker that mapped it crashes.
#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_file_that_shrinks_ends_its_worker_alone() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("m.mt");
    let cut = HandlerKind::once(move |_: CallBody, _| {
        let file = File::options().write(true).open(&path);
        let cut = file.and_then(|file| file.set_len(0));
        let answer = cut.map_err(|error| CallError::internal(error.to_string()));
        async move { answer.map(|()| CallOutput::from(json!({}))) }
    });
    let cut = Registration::new(OperationSpec::query("test/cut", "For tests."), cut);
    let lab = stored_in(folder, vec![cut]);
    let request = lab.request().await;
    let mut other = spec_of("other", "export const ping = () => 'pong'");
    other.mode = SessionMode::Service;
    let other = lab.open(&request, other).await;
    let mut cut = spec(
        "const file = await tensor.open({ path: 'm.mt' });
        const rows = file.view('rows').data();
        const before = rows[5];
        await ops.call('test/cut', {});
        export default [before, rows[5]]",
    );
    cut.grants = SessionGrants::to(["tensor/*", "test/*"]);
    cut.alone = true;
    let failure = lab.run(cut).await.expect_err("there is nothing any more");
    assert_eq!(failure.code, RuntimeCode::WorkerLost, "{failure}");
    assert_eq!(failure.code.on_the_wire(), ("UNAVAILABLE", true));
    // The caller is answered before the worker is buried.
    until("a crash is counted", || {
        let ended = lab.sessions.workers().stats().ended;
        ended.get(&WorkerEndReason::Crash) == Some(&1)
    })
    .await;
    let pong = other.run(&request.env(), export("ping", json!(null))).await;
    assert_eq!(pong.expect("it was not in that worker").value, "pong");
}

/// Each answer has a descriptor, of which a worker has few, and a script that computes takes none of the answers.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_script_leaves_do_not_end_its_worker() {
    let lab = stored();
    let mut leaves = spec(
        "const open = Array.from({ length: 64 }, () => tensor.open({ path: 'm.mt' }));
        const until = Date.now() + 500;
        while (Date.now() < until);
        const settled = await Promise.allSettled(open);
        export default [settled.length, settled.some((one) => one.status === 'fulfilled')];",
    );
    leaves.grants = SessionGrants::to(["tensor/*"]);
    let left = lab.run(leaves).await.expect("its worker lives");
    assert_eq!(left.value, json!([64, true]));
    let ended = lab.sessions.workers().stats().ended;
    for reason in [WorkerEndReason::Exit, WorkerEndReason::Undelivered] {
        assert_eq!(ended.get(&reason).copied().unwrap_or_default(), 0);
    }
}

/// A REPL without modules has the same code as every other one: none. Lines that crash their workers must not put that
/// into quarantine.
#[tokio::test(flavor = "multi_thread")]
async fn lines_that_crash_their_workers_keep_no_repl_from_opening() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("m.mt");
    let written = move |bytes: &[u8]| std::fs::write(&path, bytes).is_ok();
    let resize = HandlerKind::once(move |input: CallBody, _| {
        let is_whole = input.value()["whole"] == json!(true);
        let done = written(&if is_whole { container() } else { Vec::new() });
        async move { Ok::<_, CallError>(CallOutput::from(json!(done))) }
    });
    let resize = Registration::new(OperationSpec::query("test/resize", "For tests."), resize);
    let lab = stored_in(folder, vec![resize]);
    let request = lab.request().await;
    let repl = async |tenant: &str| {
        let mut spec = SessionSpec::new(Some(identity(tenant, &["*"])), ModuleSet::new());
        spec.mode = SessionMode::Repl;
        spec.grants = SessionGrants::to(["tensor/*", "test/*"]);
        lab.open(&request, spec).await
    };
    let line = async |repl: &ScriptSession, source: &str| {
        let source = source.to_owned();
        let work = IsolateWork::Script { source };
        soon(repl.run(&request.env(), work)).await
    };
    let crashes = "await ops.call('test/resize', { whole: true });
        const file = await tensor.open({ path: 'm.mt' });
        const rows = file.view('rows').data();
        await ops.call('test/resize', { whole: false });
        rows[5]";
    for _ in 0..3 {
        let hostile = repl("tenant").await;
        assert_eq!(code(line(&hostile, crashes).await), RuntimeCode::WorkerLost);
    }
    until("three crashes are counted", || {
        let ended = lab.sessions.workers().stats().ended;
        ended.get(&WorkerEndReason::Crash) == Some(&3)
    })
    .await;
    for tenant in ["tenant", "other"] {
        let answer = line(&repl(tenant).await, "20 + 22").await;
        assert_eq!(answer.expect("it is open to all").value, json!(42));
    }
    assert_eq!(lab.sessions.workers().stats().quarantined, 0);
}
