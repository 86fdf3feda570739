//! What workers hold, as the kernel counts it: of a thousand idle sessions, and of a tensor that a
//! script has opened and not looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use alknet_call::{CallError, CallOutput, Env, HandlerKind, OperationSpec, Registration};
use alknet_core::BoxFuture;
use alknet_runtime::limits::CPU_MAX;
use alknet_runtime::{RuntimeCode, SessionMode};
use alknet_sessions::limits::{FUEL_MAX, SESSIONS_OF_TENANT_MAX};
use alknet_sessions::{SessionGrants, SessionsConfig, TensorFiles};
use alknet_test_support::is_campaign;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{SessionLab, export, soon, spec, spec_of, until};

const MIB: u64 = 1 << 20;

/// Idle sessions in a run of the tests, and in `cargo xtask soak counts`; and what all of their workers may hold together.
const IDLE: [usize; 2] = [320, 1000];
const IDLE_BYTES_MAX: u64 = 1 << 30;

/// Elements of the tensor, of four bytes each.
const ELEMENTS: u64 = 64 << 20;
/// What opening it may add.
const OPENED_BYTES_MAX: u64 = 4 * MIB;

/// What the kernel keeps of a process.
fn status(pid: i32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker lives");
    in_bytes(&text, name).expect("the kernel says it")
}

/// A line of the kernel's, which counts in KiB.
fn in_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Pages that are in memory, in bytes: counted where we may, else what the kernel keeps of it, which on
/// machines of many processors is a little behind.
fn resident(pid: i32) -> u64 {
    let counted = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let counted = counted.ok().and_then(|text| in_bytes(&text, "Rss:"));
    counted.unwrap_or_else(|| status(pid, "VmRSS:"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_sessions_answer_are_listed_and_fit_into_a_gibibyte() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let env = request.env();
    let mut sessions = Vec::new();
    let count = IDLE[usize::from(is_campaign())];
    for at in 0..count {
        let source = format!("let n = {at}; export const next = () => ++n;");
        // Each tenant has as many as one may.
        let tenant = format!("tenant{}", at / SESSIONS_OF_TENANT_MAX);
        let mut idle = spec_of(&tenant, &source);
        idle.mode = SessionMode::Service;
        let session = lab.open(&request, idle).await;
        let ran = soon(session.run(&env, export("next", Value::Null))).await;
        assert_eq!(ran.expect("a value").value, json!(at + 1));
        sessions.push(session);
    }
    let listed = lab.sessions.list();
    assert_eq!(listed.len(), count);
    assert!(listed.iter().all(|info| info.state.name() == "idle"));
    // Sixteen in a worker. What the kernel gives a worker alone is counted for each;
    // the program that all of them run, once.
    let mut workers: BTreeMap<i32, u32> = BTreeMap::new();
    for info in &listed {
        *workers.entry(info.pid).or_default() += 1;
    }
    assert_eq!(workers.len(), count.div_ceil(16), "{workers:?}");
    let own: u64 = workers
        .keys()
        .map(|pid| status(*pid, "RssAnon:") + status(*pid, "RssShmem:"))
        .sum();
    let program = workers.keys().map(|pid| status(*pid, "RssFile:")).max();
    let held = own + program.unwrap_or(0);
    let heap = listed.iter().map(|info| info.heap_peak).max().unwrap_or(0);
    println!(
        "figure idle sessions: {count} in {} MiB, each with a heap of {} KiB",
        held / MIB,
        heap >> 10
    );
    // Fewer have their share of it.
    let most = IDLE_BYTES_MAX / 1000 * count as u64;
    assert!(held <= most, "{} MiB", held / MIB);
    // Each is still its own.
    for (at, session) in sessions.iter().enumerate() {
        let ran = soon(session.run(&env, export("next", Value::Null))).await;
        assert_eq!(ran.expect("a value").value, json!(at + 2));
    }
}

/// Answers that a script does not look at, MiB.
const LEFT_MIB: u64 = 48;
/// Descriptors of shared memory that a worker may have beside.
const SHARED_MAX: usize = 8;

/// What the node writes into shared memory counts as the node's while it is open anywhere: a worker takes an answer
/// into memory of its own, whatever its script does meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_script_leaves_are_not_the_nodes_memory() {
    let lab = SessionLab::new();
    let source = format!(
        "export const leave = () => {{
             for (let i = 0; i < {LEFT_MIB}; i++) ops.call('test/big', 1 << 20).catch(() => {{}});
             for (;;) {{}}
         }};"
    );
    let mut leaves = spec(&source);
    leaves.mode = SessionMode::Service;
    leaves.limits.runtime.fuel_ticks = FUEL_MAX;
    leaves.limits.runtime.cpu = CPU_MAX;
    let request = lab.request().await;
    let session = lab.open(&request, leaves).await;
    let pid = session.info().pid;
    let before = status(pid, "RssAnon:");
    let env = request.env();
    let work = session.run(&env, export("leave", Value::Null));
    let taken = until("the answers are the worker's own", || {
        status(pid, "RssAnon:") >= before + LEFT_MIB * MIB
    });
    tokio::select! {
        ran = work => panic!("it ended: {ran:?}"),
        () = taken => {}
    }
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("the worker lives");
    let links = open.filter_map(|one| fs::read_link(one.ok()?.path()).ok());
    let shared = links.filter(|link| link.to_string_lossy().contains("memfd"));
    let shared = shared.count();
    assert!(
        shared <= SHARED_MAX,
        "{shared} answers are left in shared memory"
    );
}

/// Values in a list whose text has 4 MiB: the most that the node passes on to a script.
const LIST_VALUES: usize = ((4 << 20) - 1000) / 2;
/// What the list may cost its worker: the frame and the script's own list took 34 MiB. With a tree it was 178.
const LIST_BYTES_MAX: u64 = 64 * MIB;

/// A worker makes no tree of an answer: it would be outside the memory that the script is granted, and end the worker,
/// with the sessions of others in it, where the script's own limit ends the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_costs_its_worker_no_tree() {
    let text = Bytes::from(format!("[0{}]", ",0".repeat(LIST_VALUES - 1)));
    let list = HandlerKind::once(move |_, _| {
        let text = text.clone();
        async move { Ok(CallOutput::Raw(text)) }
    });
    let list = Registration::new(OperationSpec::query("test/list", "For tests."), list);
    let lab = SessionLab::with(SessionsConfig::default(), vec![list]);
    let mut counts =
        spec("export const count = async () => (await ops.call('test/list', 0)).length;");
    counts.mode = SessionMode::Service;
    counts.alone = true;
    counts.limits.runtime.heap_bytes = 256 << 20;
    let request = lab.request().await;
    let session = lab.open(&request, counts).await;
    let pid = session.info().pid;
    let before = status(pid, "VmHWM:");
    let ran = soon(session.run(&request.env(), export("count", Value::Null))).await;
    assert_eq!(ran.expect("the list").value, json!(LIST_VALUES));
    let grown = status(pid, "VmHWM:") - before;
    println!("figure a list of 4 MiB in its worker: {} MiB", grown / MIB);
    assert!(grown < LIST_BYTES_MAX, "{} MiB", grown / MIB);
}

/// The memory of the smallest worker (docs/workers.md).
const SMALLEST_WORKER_BYTES: u64 = 384 * MIB;
/// Answers at once of a script that computes until all of them are there.
const ANSWERS_AT_ONCE: usize = 5;

/// An operation that answers with as many of the named text in a list as an answer may have.
fn shapes() -> Registration {
    let shapes = HandlerKind::once(|input, _| async move {
        let unit: String = input.parse()?;
        let count = 2 * LIST_VALUES / (unit.len() + 1);
        let text = format!("[{}{unit}]", format!("{unit},").repeat(count - 1));
        Ok(CallOutput::Raw(text.into()))
    });
    Registration::new(OperationSpec::query("test/shape", "For tests."), shapes)
}

/// Another server chooses the shape of its answer: a list in lists has two bytes of text for each level. The worker has
/// the state of another session, and no more memory than the smallest one.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_shape_ends_no_worker() {
    let lab = SessionLab::with(SessionsConfig::default(), vec![shapes()]);
    let request = lab.request().await;
    let env = request.env();
    let in_one_worker = |source: &str| {
        let mut spec = spec(source);
        spec.mode = SessionMode::Service;
        spec.limits.runtime.external_bytes = 0;
        spec.limits.runtime.fuel_ticks = FUEL_MAX;
        spec.limits.runtime.cpu = CPU_MAX;
        spec
    };
    let counter = in_one_worker("let n = 0; export const next = () => ++n;");
    let counter = lab.open(&request, counter).await;
    let pid = counter.info().pid;
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(58), close.repeat(58));
    let shapes = [
        "0".to_owned(),
        "[0]".to_owned(),
        "[1,2]".to_owned(),
        nested("[", "]"),
        "{\"\":0}".to_owned(),
        nested("{\"\":", "}").replace(":}", ":0}"),
        "\"a\"".to_owned(),
    ];
    for (at, shape) in shapes.iter().enumerate() {
        let source = format!(
            "export const ask = async (shape) => (await ops.call('test/shape', shape)).length;
             export const all = (shape) => {{
                 const one = () => ops.call('test/shape', shape).then(() => 1, () => 0);
                 const all = Array.from({{ length: {ANSWERS_AT_ONCE} }}, one);
                 for (let i = 0; i < 2e7; i++);
                 return Promise.all(all);
             }};"
        );
        for name in ["ask", "all"] {
            // Its own heap may not have room for the answer, which ends the session and nothing else.
            let asks = lab.open(&request, in_one_worker(&source)).await;
            assert_eq!(asks.info().pid, pid, "they share a worker");
            let ran = soon(asks.run(&env, export(name, json!(shape)))).await;
            let ended = ran.as_ref().map(|ran| ran.value.clone());
            println!("figure {name} {}: {ended:?}", &shape[..shape.len().min(8)]);
            let lost = ran.is_err_and(|failure| failure.code == RuntimeCode::WorkerLost);
            assert!(!lost, "{name} {shape}");
            drop(asks);
            until("it is closed", || lab.sessions.list().len() == 1).await;
        }
        let next = soon(counter.run(&env, export("next", Value::Null))).await;
        assert_eq!(next.expect("it lives").value, json!(at + 1), "{shape}");
    }
    // The node looks at the memory of a worker a few times a second, and may miss a peak.
    let peak = status(pid, "VmHWM:");
    println!(
        "figure answers of any shape in one worker: {} MiB",
        peak / MIB
    );
    assert!(peak < SMALLEST_WORKER_BYTES, "{} MiB", peak / MIB);
}

/// Names of one hash in an answer, which took the worker longer than a call may take.
const NAMES_ALIKE: usize = 150_000;

/// Another server chooses the names in its answer. The engine's hash of names has no seed, and it made the value, and
/// freed it, in native code, which nothing interrupts: the worker was lost for its time, with another session's state.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_names_that_share_a_hash_ends_no_worker() {
    let pair = |at: usize| {
        let units = [0x0800 + at as u32, 0xd700 - 263 * at as u32];
        units.into_iter().filter_map(char::from_u32)
    };
    let names = (0..NAMES_ALIKE).map(|at| {
        let name: String = [at % 60, at / 60 % 60, at / 3600]
            .map(pair)
            .into_iter()
            .flatten()
            .collect();
        format!("\"{name}\":0")
    });
    let names: Vec<String> = names.collect();
    let texts = [
        format!("{{{}}}", names.join(",")),
        format!("[{{{}}}]", names.join("},{")),
    ];
    let answers = HandlerKind::once(move |input, _| {
        let text = texts.get(input.parse().unwrap_or(0)).cloned();
        async move { Ok(CallOutput::Raw(text.unwrap_or_default().into())) }
    });
    let answers = Registration::new(OperationSpec::query("test/names", "For tests."), answers);
    let lab = SessionLab::with(SessionsConfig::default(), vec![answers]);
    let request = lab.request().await;
    let env = request.env();
    let source = "let n = 0;
        export const next = () => ++n;
        export const ask = (shape) => ops.call('test/names', shape).then(() => 'an answer', (error) => error.code);";
    let mut service = spec(source);
    service.mode = SessionMode::Service;
    let counter = lab.open(&request, service.clone()).await;
    let asks = lab.open(&request, service).await;
    assert_eq!(asks.info().pid, counter.info().pid, "they share a worker");
    for shape in 0..2 {
        let ran = soon(asks.run(&env, export("ask", json!(shape)))).await;
        assert_eq!(ran.expect("it goes on").value, json!("QUOTA_EXCEEDED"));
        let next = soon(counter.run(&env, export("next", Value::Null))).await;
        assert_eq!(next.expect("it lives").value, json!(shape + 1));
    }
}

/// The one file of a store, which forgets it when it has handed it out.
struct DeletedFile(PathBuf);

impl TensorFiles for DeletedFile {
    fn open(&self, _: &Env, _: Value) -> BoxFuture<'static, Result<File, CallError>> {
        let file = File::open(&self.0).expect("it was not asked for before");
        fs::remove_file(&self.0).expect("the folder is ours");
        Box::pin(std::future::ready(Ok(file)))
    }
}

/// A file of 256 MiB whose first and last elements are 1.5.
fn tensor_file(folder: &tempfile::TempDir) -> PathBuf {
    let bytes = ELEMENTS * 4;
    let header = json!({
        "t": { "dtype": "F32", "shape": [ELEMENTS], "data_offsets": [0, bytes] },
    });
    let mut text = header.to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let path = folder.path().join("large.safetensors");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&(text.len() as u64).to_le_bytes())?;
        file.write_all(text.as_bytes())?;
        let begin = file.stream_position()?;
        file.write_all(&1.5_f32.to_le_bytes())?;
        file.seek(SeekFrom::Start(begin + bytes - 4))?;
        file.write_all(&1.5_f32.to_le_bytes())
    };
    write().expect("the folder is ours");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_costs_memory_only_where_it_is_looked_at_and_outlives_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = tensor_file(&folder);
    let open = HandlerKind::once(|_, _| async { Ok(json!({ "tensors": [{ "name": "t" }] })) });
    let open = Registration::new(OperationSpec::query("tensor/open", "For tests."), open);
    let config = SessionsConfig {
        files: Some(Arc::new(DeletedFile(path.clone()))),
        ..SessionsConfig::default()
    };
    let lab = SessionLab::with(config, vec![open]);
    let request = lab.request().await;
    let env = request.env();
    let mut opening = spec(
        "let data;
         const names = (f) => { try { f(); return 'done'; } catch (e) { return e.name; } };
         export const nothing = () => 0;
         export const open = async () => {
             data = (await tensor.open({ id: '00' })).view('t').data();
             return [data.length, data.byteLength];
         };
         export const write = () => {
             data[0] = 7;
             return [data[0], names(() => data.fill(7)), names(() => data.set([7])),
                 names(() => data.sort()), names(() => data.copyWithin(0, 1)),
                 names(() => data.buffer.transfer()), names(() => data.buffer.resize(1)),
                 names(() => structuredClone(data.buffer, { transfer: [data.buffer] }))];
         };
         export const read = () => {
             let sum = 0;
             for (let i = 0; i < data.length; i += 1024) sum += data[i];
             return [sum, data[data.length - 1]];
         };",
    );
    opening.grants = SessionGrants::to(["tensor/*"]);
    opening.mode = SessionMode::Service;
    opening.alone = true;
    opening.limits.runtime.external_bytes = 512 << 20;
    let session = lab.open(&request, opening).await;
    let call = async |name: &str| {
        let ran = soon(session.run(&env, export(name, Value::Null))).await;
        ran.expect("a value").value
    };
    call("nothing").await;
    let pid = session.info().pid;
    let resident = || resident(pid);
    let before = resident();
    assert_eq!(call("open").await, json!([ELEMENTS, ELEMENTS * 4]));
    assert!(!path.exists(), "the store has let go of it");
    let opened = resident().saturating_sub(before);
    assert!(opened < OPENED_BYTES_MAX, "{opened} bytes");
    // A store to an element has no effect, everything else is refused.
    let written = call("write").await;
    assert_eq!(written[0], json!(1.5), "{written}");
    let refused = written.as_array().expect("a list").iter().skip(1);
    assert!(
        refused.clone().all(|name| name != "done") && refused.len() == 7,
        "{written}"
    );
    let written = resident().saturating_sub(before);
    assert!(written < OPENED_BYTES_MAX, "{written} bytes");
    assert_eq!(call("read").await, json!([1.5, 1.5]));
    let read = resident().saturating_sub(before);
    assert!(read > ELEMENTS * 4 / 2, "the measure sees it: {read} bytes");
}

/// What the worker of one service may have at most: the heap, the answers that wait, and the worker itself. It had 69 MiB;
/// the tree of one answer would have 144.
const ONE_SERVICE_BYTES_MAX: u64 = (64 + 64 + 32) * MIB;
/// What a service keeps in its heap: numbers of sixteen bytes.
const KEPT_NUMBERS: usize = 1_600_000;

/// A service that has much of its own asks for many answers at once: most of them texts that wait, and lists of numbers.
/// One of the service's callers can repeat that, and a worker that is lost takes the state from all of them.
#[tokio::test(flavor = "multi_thread")]
async fn many_long_answers_of_a_service_with_much_state_end_no_worker() {
    let lab = SessionLab::with(SessionsConfig::default(), vec![shapes()]);
    let request = lab.request().await;
    let env = request.env();
    let source = format!(
        "const kept = new Array({KEPT_NUMBERS}).fill(0);
         let n = 0;
         export const next = () => ++n + kept[0];
         export const many = async (long) => {{
             const one = (shape) => ops.call('test/shape', shape).then((list) => list.length, () => 0);
             const shapes = [...Array(3).fill('0'), ...Array(13).fill(long)];
             return (await Promise.all(shapes.map(one))).length;
         }};"
    );
    let mut service = spec(&source);
    service.mode = SessionMode::Service;
    service.limits.runtime.fuel_ticks = FUEL_MAX;
    service.limits.runtime.cpu = CPU_MAX;
    let service = lab.open(&request, service).await;
    let long = format!("{:?}", "x".repeat((2 * LIST_VALUES - 10) / 2));
    for round in 1..=6 {
        let many = service.run(&env, export("many", json!(long)));
        assert_eq!(soon(many).await.expect("all of them").value, json!(16));
        let next = soon(service.run(&env, export("next", Value::Null))).await;
        assert_eq!(next.expect("its state").value, json!(round));
    }
    let peak = status(service.info().pid, "VmHWM:");
    println!(
        "figure a service with many long answers: {} MiB",
        peak / MIB
    );
    assert!(peak < ONE_SERVICE_BYTES_MAX, "{} MiB", peak / MIB);
}
