//! What requesters share of an imported server's memory: one keeps no other out, and a tool whose answer finds no room is
//! not called twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_call::{CallError, CallOutput, ErrorCode, ImportMemory, OperationAdapter};
use serde_json::json;

use crate::hostile::{McpServerReply, server, tool};
use crate::imports::{McpImporter, adapter_in};

/// An import has 2 MiB of it, and one requester 1 MiB of these. A text takes three times its bytes while it is read.
const MACHINE_BYTES: u64 = 32 << 20;
const SHARE_BYTES: usize = 1 << 20;

const KIB: usize = 1 << 10;

/// A node on a small machine with the tools `read` and `pay` of a server, which answer with a text of as many bytes as
/// they are asked for.
struct PayingToolServer {
    node: McpImporter,
    memory: ImportMemory,
    /// How often the server was asked to pay.
    paid: Arc<AtomicUsize>,
}

impl PayingToolServer {
    async fn open() -> Self {
        let paid: Arc<AtomicUsize> = Arc::default();
        let pays = Arc::clone(&paid);
        let port = server(move |message| {
            if message["method"] == "tools/list" {
                let mut reads = tool("read");
                reads["annotations"] = json!({"readOnlyHint": true});
                return McpServerReply::Result(json!({"tools": [reads, tool("pay")]}));
            }
            let params = &message["params"];
            pays.fetch_add(usize::from(params["name"] == "pay"), Ordering::SeqCst);
            let bytes = params["arguments"]["bytes"].as_u64().expect("a number");
            let text = "x".repeat(bytes as usize);
            McpServerReply::Result(json!({"content": [{"type": "text", "text": text}]}))
        })
        .await;
        let memory = ImportMemory::for_machine(MACHINE_BYTES);
        let tools = adapter_in(&memory, port, None).import().await;
        Self {
            node: McpImporter::with_registrations(tools.expect("tools")),
            memory,
            paid,
        }
    }

    async fn read(&self, who: &str, bytes: usize) -> Result<CallOutput, CallError> {
        let input = json!({"bytes": bytes});
        self.node.call_once(who, None, "read", input).await
    }

    async fn pay(&self, who: &str, bytes: usize) -> Result<CallOutput, CallError> {
        let input = json!({"bytes": bytes});
        self.node.call_once(who, Some("k"), "pay", input).await
    }

    /// Answers that an identity asks for and keeps until it gets no more.
    async fn fill(&self, who: &str) -> Vec<CallOutput> {
        let mut kept = Vec::new();
        let mut bytes = 128 * KIB;
        while bytes >= KIB {
            match self.read(who, bytes).await {
                Ok(answer) => kept.push(answer),
                Err(refused) => {
                    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
                    assert!(refused.retryable, "it is a query");
                    bytes /= 2;
                }
            }
        }
        kept
    }

    fn paid(&self) -> usize {
        self.paid.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn answers_of_tools_that_one_identity_keeps_leave_others_room() {
    let shop = PayingToolServer::open().await;
    let kept = shop.fill("eve").await;
    let taken = shop.memory.taken();
    assert!(taken > SHARE_BYTES / 4 * 3, "{taken}");
    assert!(taken <= SHARE_BYTES, "{taken}");
    let read = shop.read("ada", 64 * KIB).await;
    drop(read.expect("another identity has room"));
    let paid = shop.pay("ada", KIB).await;
    drop(paid.expect("and for the answer to a change"));
    drop(kept);
}

/// The attacker keeps answers, so that the answer to another identity's payment finds no room.
#[tokio::test]
async fn a_tool_whose_answer_finds_no_room_is_called_once_for_its_key() {
    let shop = PayingToolServer::open().await;
    let _kept = shop.fill("eve").await;
    for _ in 0..2 {
        // While it is read it takes more than is left of three quarters, and less than one identity may have.
        let paid = shop.pay("ada", 256 * KIB).await;
        let refused = paid.expect_err("there is no room for the answer");
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        assert!(!refused.retryable, "the tool was called");
    }
    assert_eq!(shop.paid(), 1);
}

#[tokio::test]
async fn a_tool_that_changes_something_is_not_called_where_its_answer_has_no_room() {
    let shop = PayingToolServer::open().await;
    let kept = [shop.fill("eve").await, shop.fill("mallory").await];
    let refused = shop.pay("ada", KIB).await.expect_err("there is no room");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    assert!(refused.retryable, "nothing was sent");
    assert_eq!(shop.paid(), 0);
    // Of the last quarter others have a part, for short answers.
    let read = shop.read("ada", KIB).await;
    drop(read.expect("a short one"));
    drop(kept);
    let paid = shop.pay("ada", KIB).await;
    drop(paid.expect("there is room again"));
    assert_eq!(shop.paid(), 1);
}
