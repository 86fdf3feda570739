//! A host in memory, and short ways to run a script.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alknet_runtime::{
    ConsoleLevel, DeferredReply, EntryOutcome, EnvOperation, HostFuture, Isolate, IsolateHost,
    IsolateSpec, IsolateWork, Items, ModuleSet, OpError, OpReply, RuntimeCode, ScriptCallOptions,
    ScriptFailure, ScriptOperationKind, ScriptRegistration, SinkStopped, ValueSink,
};
use futures_util::stream;
use serde_json::{Value, json};

/// Operations that answer at once, later or never, and a record of what was asked.
#[derive(Default)]
pub(crate) struct RecordingHost {
    pub(crate) calls: Mutex<Vec<(String, Value, ScriptCallOptions)>>,
    pub(crate) lines: Mutex<Vec<(ConsoleLevel, String)>>,
    pub(crate) registered: Mutex<Vec<(ScriptRegistration, [u8; 32])>>,
    pub(crate) emitted: Mutex<Vec<(u64, Value)>>,
    /// Calls whose future was dropped before it answered.
    pub(crate) aborted: Arc<AtomicUsize>,
    /// Items that subscriptions were asked for.
    pub(crate) polled: Arc<AtomicUsize>,
    /// What `file` answers.
    pub(crate) file: bytes::Bytes,
}

/// The members of the answer of `repeat`, which takes many times the CPU time that its test has.
const REPEATED: usize = 20_000_000;

/// An answer that has one member again and again, so that it takes time and no memory.
#[derive(Debug)]
struct RepeatedMember;

impl DeferredReply for RepeatedMember {
    fn write(self: Box<Self>, sink: &mut dyn ValueSink) -> Result<(), OpError> {
        let stopped = |stopped: SinkStopped| OpError::new("STOPPED", stopped.to_string());
        sink.begin_object().map_err(stopped)?;
        for _ in 0..REPEATED {
            sink.name("a").map_err(stopped)?;
            sink.null().map_err(stopped)?;
        }
        sink.end().map_err(stopped)
    }
}

struct DropCounter(Arc<AtomicUsize>);

impl Drop for DropCounter {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl IsolateHost for RecordingHost {
    fn call(
        &self,
        path: &str,
        input: Value,
        options: ScriptCallOptions,
    ) -> HostFuture<Result<OpReply, OpError>> {
        self.calls
            .lock()
            .expect("no poison")
            .push((path.to_owned(), input.clone(), options));
        let answer = match path {
            "echo" => Ok(OpReply::Json(input)),
            "bytes" => Ok(OpReply::Bytes(
                vec![7_u8; input.as_u64().unwrap_or(0) as usize].into(),
            )),
            "file" => Ok(OpReply::Bytes(self.file.clone())),
            "fail" => Err(OpError {
                details: Box::new(json!({ "at": 3 })),
                retryable: true,
                ..OpError::new("CONFLICT", "another change was first")
            }),
            "refuse" => Err(OpError {
                details: Box::new(input),
                ..OpError::new("CONFLICT", "another change was first")
            }),
            "repeat" => Ok(OpReply::Deferred(Box::new(RepeatedMember))),
            "never" => {
                let guard = DropCounter(Arc::clone(&self.aborted));
                return Box::pin(async move {
                    let _guard = guard;
                    std::future::pending().await
                });
            }
            "yields" => {
                // Answers later the larger the number is.
                let turns = input.as_u64().unwrap_or(0);
                return Box::pin(async move {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    Ok(OpReply::Json(input))
                });
            }
            _ => Err(OpError::new("NOT_FOUND", "no such operation")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn subscribe(&self, path: &str, input: Value, _: ScriptCallOptions) -> Items {
        if path != "count" {
            return Box::pin(stream::iter([Err(OpError::new(
                "NOT_FOUND",
                "no such operation",
            ))]));
        }
        let (polled, guard) = (
            Arc::clone(&self.polled),
            DropCounter(Arc::clone(&self.aborted)),
        );
        let count = input.as_u64().unwrap_or(u64::MAX);
        Box::pin(stream::unfold((0, guard), move |(at, guard)| {
            polled.fetch_add(1, Ordering::SeqCst);
            std::future::ready(
                (at < count).then(|| (Ok(OpReply::Json(json!(at))), (at + 1, guard))),
            )
        }))
    }

    fn list(&self, prefix: &str) -> Vec<EnvOperation> {
        let operation = |path: &str, kind| EnvOperation {
            path: path.to_owned(),
            kind,
            input: json!({ "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"] }),
            output: json!({ "type": "number" }),
            description: "for tests".to_owned(),
        };
        let all = [
            operation("echo", ScriptOperationKind::Query),
            operation("count", ScriptOperationKind::Subscription),
        ];
        all.into_iter()
            .filter(|operation| operation.path.starts_with(prefix))
            .collect()
    }

    fn register(
        &self,
        registration: ScriptRegistration,
        script: [u8; 32],
    ) -> HostFuture<Result<(), OpError>> {
        let refused = registration.name == "taken";
        self.registered
            .lock()
            .expect("no poison")
            .push((registration, script));
        let answer = if refused {
            Err(OpError::new("CONFLICT", "the name is taken"))
        } else {
            Ok(())
        };
        Box::pin(std::future::ready(answer))
    }

    fn emit(&self, entry: u64, item: Value) -> HostFuture<Result<(), OpError>> {
        self.emitted.lock().expect("no poison").push((entry, item));
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, level: ConsoleLevel, text: &str) {
        self.lines
            .lock()
            .expect("no poison")
            .push((level, text.to_owned()));
    }

    /// Knows `type` alone, which is what the tests use.
    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let name = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        match schema.get("type").and_then(Value::as_str) {
            Some(expected) if expected != name => Err(format!("{name} is no {expected}")),
            _ => Ok(()),
        }
    }
}

/// A spec over one module, `./main.js`, that replays: a virtual clock and a fixed seed.
pub(crate) fn spec(source: &str) -> IsolateSpec {
    modules(&[("./main.js", source)])
}

pub(crate) fn modules(sources: &[(&str, &str)]) -> IsolateSpec {
    let mut set = ModuleSet::new();
    for (name, source) in sources {
        set.insert(name, *source).expect("a module");
    }
    IsolateSpec::new(set).deterministic([1; 32], 1_000)
}

pub(crate) fn main() -> IsolateWork {
    IsolateWork::Module {
        module: "./main.js".to_owned(),
    }
}

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(future)
}

/// Evaluates `./main.js` of `spec` with a fresh host.
pub(crate) fn outcome(spec: IsolateSpec) -> (EntryOutcome, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    let mut isolate =
        Isolate::open(spec, Arc::clone(&host) as Arc<dyn IsolateHost>).expect("an isolate");
    (wait(isolate.run(main())), host)
}

/// The default export of a module.
#[track_caller]
pub(crate) fn value(source: &str) -> Value {
    match outcome(spec(source)).0.result {
        Ok(value) => value,
        Err(failure) => panic!("{source}\n{failure}\n{:?}", failure.stack),
    }
}

/// How a module fails.
#[track_caller]
pub(crate) fn failure(source: &str) -> ScriptFailure {
    match outcome(spec(source)).0.result {
        Ok(value) => panic!("{source} answered {value}"),
        Err(failure) => failure,
    }
}

#[track_caller]
pub(crate) fn code(source: &str) -> RuntimeCode {
    failure(source).code
}
