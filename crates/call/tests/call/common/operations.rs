//! A registry with operations of every kind.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use alknet_call::*;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{OperationProbe, ProbeGuard};

/// The number of tries of `test/flaky` after which it asks for a pause of an hour.
pub const NOT_SOON: usize = 99;
const HOUR_MS: u64 = 3_600_000;

pub fn registry(probe: &Arc<OperationProbe>) -> Registry {
    let mut builder = Registry::builder();
    let query = |name| OperationSpec::query(name, "For tests.");
    let subscription = |name| OperationSpec::subscription(name, "For tests.");
    builder.add(Registration::new(
        query("test/echo"),
        HandlerKind::once(|input, _| async move { Ok(CallOutput::Raw(input.raw().clone())) }),
    ));
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        query("test/hang"),
        HandlerKind::once(move |_, _| {
            let guard = ProbeGuard::new(&p);
            async move {
                guard.0.release.notified().await;
                Ok(json!("released"))
            }
        }),
    ));
    builder.add(Registration::new(
        query("test/panic"),
        HandlerKind::once(|_, _| async {
            if true {
                panic!("on purpose");
            }
            Ok(Value::Null)
        }),
    ));
    builder.add(Registration::new(
        query("test/typed").with_input(json!({
            "type": "object",
            "properties": { "n": { "type": "integer" } },
            "required": ["n"],
        })),
        HandlerKind::once(|input, _| async move { Ok(input.value()["n"].clone()) }),
    ));
    builder.add(Registration::new(
        query("test/admin")
            .with_scope("node:admin")
            .with_input(json!({ "type": "string" })),
        HandlerKind::once(
            |_, ctx| async move { Ok(json!(ctx.identity().map(|i| i.id.to_string()))) },
        ),
    ));
    builder.add(Registration::new(
        query("test/internal").internal(),
        HandlerKind::once(|_, _| async { Ok(Value::Null) }),
    ));
    builder.add(Registration::new(
        query("test/big"),
        HandlerKind::once(|input, _| async move {
            let bytes: usize = input.parse()?;
            Ok(json!("x".repeat(bytes)))
        }),
    ));
    builder.add(Registration::new(
        query("test/undeclared"),
        HandlerKind::once(|_, _| async {
            Err::<Value, _>(CallError::operation("DISK_FULL", "no room"))
        }),
    ));
    builder.add(Registration::new(
        query("test/mixed"),
        HandlerKind::once(|_, _| async {
            let value = json!({ "data": { "$bin": [1, 2] } });
            Ok(CallOutput::Mixed(value, Bytes::from_static(b"abcd")))
        }),
    ));
    builder.add(Registration::new(
        query("test/sum"),
        HandlerKind::once(|input, _| async move {
            let data = input.binary(&input.value()["data"]).unwrap_or_default();
            let sum: u64 = data.iter().copied().map(u64::from).sum();
            Ok(json!({ "bytes": data.len(), "sum": sum }))
        }),
    ));
    builder.add(Registration::new(
        query("test/back"),
        HandlerKind::once(|input, ctx| async move {
            let answer = ctx.caller().call("client/double", input.value()).await?;
            Ok(answer.value().clone())
        }),
    ));
    builder.add(Registration::new(
        query("test/context"),
        HandlerKind::once(|_, ctx| async move {
            Ok(json!({
                "id": ctx.request_id(),
                "operation": ctx.operation(),
                "forwarded_for": ctx.forwarded_for(),
                "trace": ctx.trace(),
                "deadline": ctx.deadline().is_some(),
            }))
        }),
    ));
    let mut one = query("test/one");
    one.concurrency = Some(1);
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        one,
        HandlerKind::once(move |_, _| {
            let guard = ProbeGuard::new(&p);
            async move {
                guard.0.release.notified().await;
                Ok(Value::Null)
            }
        }),
    ));
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        subscription("test/count"),
        HandlerKind::stream(move |input, _| counting(&p, input.parse().unwrap_or(u64::MAX))),
    ));
    let p = Arc::clone(probe);
    builder.add(
        Registration::new(
            subscription("test/lossy"),
            HandlerKind::stream(move |input, _| counting(&p, input.parse().unwrap_or(u64::MAX))),
        )
        .on_slow(OnSlow::DropOldest(2)),
    );
    let p = Arc::clone(probe);
    builder.add(
        Registration::new(
            subscription("test/strict"),
            HandlerKind::stream(move |input, _| counting(&p, input.parse().unwrap_or(u64::MAX))),
        )
        .on_slow(OnSlow::Fail),
    );
    builder.add(Registration::new(
        subscription("test/failing"),
        HandlerKind::stream(|_, _| {
            stream::iter([
                Ok(json!(1)),
                Err(CallError::unavailable("the source is gone")),
                Ok(json!(2)),
            ])
        }),
    ));
    builder.add(Registration::new(
        subscription("test/panicking"),
        HandlerKind::stream(|_, _| {
            stream::iter(0..3).map(|n| {
                assert!(n < 1, "on purpose");
                Ok(json!(n))
            })
        }),
    ));
    let p = Arc::clone(probe);
    builder.add(Registration::new(
        subscription("test/silent"),
        HandlerKind::stream(move |_, _| {
            let guard = ProbeGuard::new(&p);
            stream::pending::<Result<Value, CallError>>().inspect(move |_| {
                let _ = &guard;
            })
        }),
    ));
    for registration in repeatable(probe) {
        builder.add(registration);
    }
    builder.build().expect("every rule is kept")
}

/// Operations that fail for a while, run once, or resume.
fn repeatable(probe: &Arc<OperationProbe>) -> Vec<Registration> {
    let other = OperationSpec::query("test/other", "For tests.").with_scope("other");
    let other = Registration::new(other, HandlerKind::once(|_, _| async { Ok(Value::Null) }));
    let p = Arc::clone(probe);
    let mut charge = OperationSpec::mutation("test/charge", "Runs once for a key.");
    charge.idempotent = Idempotence::Keyed;
    charge.concurrency = Some(1);
    let charge = HandlerKind::once(move |input, _| {
        let guard = ProbeGuard::new(&p);
        async move {
            if input.value()["wait"] == true {
                guard.0.release.notified().await;
            }
            Ok(json!(guard.0.started.load(Ordering::SeqCst)))
        }
    })
    .registered(charge);
    let flaky = |spec: OperationSpec| {
        let p = Arc::clone(probe);
        HandlerKind::once(move |input, _| {
            let guard = ProbeGuard::new(&p);
            async move {
                let tries = guard.0.started.load(Ordering::SeqCst);
                let needed: usize = input.parse()?;
                if tries < needed {
                    let error = CallError::unavailable("not yet");
                    return Err(match needed {
                        NOT_SOON => error.with_retry_after_ms(HOUR_MS),
                        _ => error,
                    });
                }
                Ok(json!(tries))
            }
        })
        .registered(spec)
    };
    let p = Arc::clone(probe);
    let mut resumable = OperationSpec::subscription("test/resumable", "Counts on from a cursor.");
    resumable.resumable = true;
    let resumable = HandlerKind::stream(move |input, _| {
        let first = input.value()["cursor"].as_u64().map_or(0, |last| last + 1);
        let guard = ProbeGuard::new(&p);
        stream::unfold((first, guard), |(n, guard)| async move {
            guard.0.bump(&guard.0.yielded);
            let item = SubscriptionItem {
                output: json!(n).into(),
                cursor: Some(json!(n)),
                dropped: 0,
            };
            Some((Ok(item), (n + 1, guard)))
        })
    })
    .registered(resumable);
    vec![
        other,
        charge,
        flaky(OperationSpec::query("test/flaky", "Fails at first.")),
        flaky(OperationSpec::mutation(
            "test/flaky-mutation",
            "Fails at first.",
        )),
        resumable,
    ]
}

trait IntoRegistration {
    fn registered(self, spec: OperationSpec) -> Registration;
}

impl IntoRegistration for HandlerKind {
    fn registered(self, spec: OperationSpec) -> Registration {
        Registration::new(spec, self).open()
    }
}

fn counting(
    probe: &Arc<OperationProbe>,
    most: u64,
) -> impl futures_util::Stream<Item = Result<Value, CallError>> + Send + use<> {
    let guard = ProbeGuard::new(probe);
    stream::unfold((0, guard), move |(n, guard)| async move {
        (n < most).then(|| {
            guard.0.bump(&guard.0.yielded);
            (Ok(json!(n)), (n + 1, guard))
        })
    })
}

/// A client that doubles numbers for the peer it is connected to.
pub fn doubling() -> CallClient {
    let registry = Registry::builder()
        .with(Registration::new(
            OperationSpec::query("client/double", ""),
            HandlerKind::once(|input, _| async move { Ok(json!(input.parse::<i64>()? * 2)) }),
        ))
        .build()
        .expect("valid");
    CallClient::new(Arc::new(Dispatcher::new(registry)))
}
