//! A promoted operation that computes on behalf of its caller, by the rights of its author.

use std::time::Duration;

use alknet_call::{CallBody, CallConnection, CallError};
use alknet_test_support::deadline;
use alknet_tests::TestBench;
use serde_json::{Value, json};

use super::promoted_callers::{OperationDraft, configuration, dial, promote};

/// Time on the GPU after which the node ends a worker, and at most so many seconds on a slow host: the call of a script
/// may take 10 s of it, and would end before.
const GPU_TIME: Duration = Duration::from_secs(2);
const GPU_SECONDS_MAX: u64 = 8;

/// `[1, 2]` as little-endian 32-bit floats, in Base64.
const NUMBERS: &str = "AACAPwAAAEA=";

/// Calls what its caller names.
const SOURCE: &str = "export const run = async ({ operation, input }) => {
        if (!operation) return 'done';
        try {
            const { handle } = await ops.call(operation, input);
            return { code: 'done', handle };
        } catch (error) {
            return { code: error.code, inside: error.details?.code };
        }
    };";

/// A product that takes longer than any request may.
fn endless() -> Value {
    let one = json!({ "inline": "AABAQA==", "dtype": "F32", "shape": [1, 1] });
    let view = |rows: usize, columns: usize| json!({ "shape": [rows, columns], "strides": [0, 0] });
    json!({
        "a": one, "b": one, "variant": "host",
        "a_view": view(4096, 1 << 20), "b_view": view(1 << 20, 4096),
    })
}

async fn asked(
    client: &CallConnection,
    operation: &str,
    input: &Value,
) -> Result<CallBody, CallError> {
    let hung = deadline(Duration::from_secs(60));
    let answer = tokio::time::timeout(hung, client.call(operation, input)).await;
    answer.expect("it hangs")
}

/// Calls an operation by the promoted one, and returns what its script says.
async fn lent(client: &CallConnection, operation: &str, input: &Value) -> Value {
    let task = json!({ "operation": operation, "input": input });
    let told = asked(client, "js/lends", &task).await;
    told.expect("it catches its errors").value().clone()
}

/// Ada's operation ends its GPU worker while an administrator calls it. It has no part in what the administrator keeps
/// on the device.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_of_another_author_ends_no_worker_of_its_caller() {
    let bench = TestBench::new();
    let [ada, rev] = ["ada", "rev"].map(|name| bench.user(name));
    let people: [(&str, _, &[&str]); 2] = [
        ("ada", &ada, &["ops:propose", "compute:run"]),
        ("rev", &rev, &["ops:promote"]),
    ];
    let config = configuration("", &people);
    let seconds = deadline(GPU_TIME).as_secs().clamp(1, GPU_SECONDS_MAX);
    let node = bench.host_with(&format!("[compute]\ngpu_seconds = {seconds}\n{config}"));
    let draft = OperationDraft {
        uses: &["tensor/create", "tensor/read", "compute/matmul"],
        input: json!({ "type": "object" }),
        example: json!({}),
        source: SOURCE,
        ..OperationDraft::waits("lends")
    };
    promote(&bench, node.target(), ("ada", &ada), &rev, &draft);
    let (_dialer, admin) = dial(&node, bench.admin()).await;
    let create = json!({
        "dtype": "F32", "shape": [2],
        "from": { "inline": NUMBERS, "dtype": "F32", "shape": [2] },
    });
    let own = asked(&admin, "tensor/create", &create).await;
    let own = json!({ "handle": own.expect("it may").value()["handle"] });
    let made = lent(&admin, "tensor/create", &create).await;
    assert_eq!(made["code"], "done", "{made}");
    let lents = json!({ "handle": made["handle"] });

    // Neither has the tensor of the other.
    let missing = json!({ "code": "NOT_FOUND", "inside": "E_NOTFOUND" });
    assert_eq!(lent(&admin, "tensor/read", &own).await, missing);
    let refused = asked(&admin, "tensor/read", &lents).await;
    let refused = refused.expect_err("it is the operation's");
    assert_eq!(refused.code.name(), "NOT_FOUND", "{refused}");
    assert_eq!(lent(&admin, "tensor/read", &lents).await["code"], "done");

    let ended = lent(&admin, "compute/matmul", &endless()).await;
    let too_long = json!({ "code": "TIMEOUT", "inside": "E_GPU_TIMEOUT" });
    assert_eq!(ended, too_long);
    // The operation's worker has ended, and with it the operation's tensor.
    assert_eq!(lent(&admin, "tensor/read", &lents).await, missing);
    let read = asked(&admin, "tensor/read", &own).await;
    let read = read.expect("its worker goes on");
    assert_eq!(read.value()["bytes"], NUMBERS, "{read:?}");
}
