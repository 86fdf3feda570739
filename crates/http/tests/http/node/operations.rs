//! The operations of the node.

use super::*;

/// Bytes of what `test/change` answers.
const CHANGED_BYTES: usize = 3000;

/// Counts how often it ran.
fn change(ran: &Arc<AtomicUsize>) -> Registration {
    let ran = Arc::clone(ran);
    let mut spec = OperationSpec::mutation("test/change", "A test.");
    spec.access_control.identified = true;
    Registration::new(
        spec,
        HandlerKind::once(move |_, _| {
            ran.fetch_add(1, Ordering::SeqCst);
            async { Ok(Value::from("x".repeat(CHANGED_BYTES))) }
        }),
    )
}

/// Counts when it is dropped before its work was done.
struct CancelCounter(Arc<AtomicUsize>);

impl Drop for CancelCounter {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// All operations. `dropped` counts calls that ended before their work was done, `ran` those of `test/change`.
pub(super) fn registry(dropped: &Arc<AtomicUsize>, ran: &Arc<AtomicUsize>) -> Registry {
    let query = |name: &str| OperationSpec::query(name, "A test.");
    let echo = || {
        HandlerKind::once(|input: alknet_call::CallBody, _| async move {
            Ok(CallOutput::Raw(input.raw().clone()))
        })
    };
    let identified = |mut spec: OperationSpec| {
        spec.access_control.identified = true;
        spec
    };
    let mut full = query("test/full");
    full.error_schemas.push(ErrorDef {
        code: "DISK_FULL".to_owned(),
        description: String::new(),
        schema: Value::Null,
        http_status: Some(507),
    });
    let dropped = Arc::clone(dropped);
    Registry::builder()
        .with(Registration::new(identified(query("test/echo")), echo()))
        .with(Registration::new(query("test/hidden").internal(), echo()))
        .with(Registration::new(
            query("test/admin").with_scope("admin"),
            echo(),
        ))
        .with(Registration::new(
            query("test/number").with_input(json!({ "type": "number" })),
            echo(),
        ))
        .with(Registration::new(
            full,
            HandlerKind::once(|_, _| async {
                let code = ErrorCode::from_name("DISK_FULL");
                Err::<Value, _>(CallError::new(code, "full"))
            }),
        ))
        .with(Registration::new(
            query("test/panic"),
            HandlerKind::once(|_, _| async {
                if true {
                    panic!("as the test wants it");
                }
                Ok(Value::Null)
            }),
        ))
        .with(Registration::new(
            query("test/wait"),
            HandlerKind::once(move |_, _| {
                let given = CancelCounter(Arc::clone(&dropped));
                async move {
                    std::future::pending::<()>().await;
                    drop(given);
                    Ok(Value::Null)
                }
            }),
        ))
        .with(Registration::new(
            OperationSpec::subscription("test/count", "A test."),
            HandlerKind::stream(|input: alknet_call::CallBody, _| {
                let most = input.value().as_u64().unwrap_or_default();
                stream::iter((0..most).map(|n| Ok::<_, CallError>(Value::from(n))))
            }),
        ))
        .with(Registration::new(
            identified(OperationSpec::subscription("test/silent", "A test.")),
            HandlerKind::stream(|_, _| stream::pending::<Result<Value, CallError>>()),
        ))
        .with(change(ran))
        .build()
        .expect("the operations are fine")
}
