//! Calls of Stripe's operations, answered by the tests' own server: its schemas hold each other, and Prism,
//! which answers for the other documents, unfolds them for more than five minutes.

use alknet_core::{CapabilityBackend, CapabilityKind};
use alknet_openapi::FromOpenApi;
use serde_json::{Value, json};

use crate::common::{ImportTestNode, dialer, only, packed};
use crate::documents::DIRECTORY;
use crate::stand_in::{StubServer, json_answer, key, options, secret};

fn customer() -> Value {
    json!({ "id": "cus_1", "object": "customer", "created": 1_700_000_000, "livemode": false })
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_are_made_read_and_listed() {
    let server = StubServer::default();
    let (one, _filler) = key(
        CapabilityKind::Bearer,
        CapabilityBackend::Bearer(secret("hush")),
    );
    let mut options = options(&server.start().await);
    options.credential = Some(one);
    let document = packed(DIRECTORY, "api/stripe.com.json");
    let adapter = FromOpenApi::new(document, options, dialer()).expect("an address");
    let names = [
        "ns/GetCustomers",
        "ns/GetCustomersCustomer",
        "ns/PostCustomers",
    ];
    let node = ImportTestNode::with_registrations(only(
        adapter.registrations().expect("a document"),
        &names,
    ));
    let list = json!({
        "object": "list", "url": "/v1/customers", "has_more": false, "data": [customer()],
    });
    for (operation, input, answer, line, body) in [
        (
            "ns/PostCustomers",
            json!({ "body": { "name": "A & B", "metadata": { "order": "67 35" } } }),
            customer(),
            "POST /base/v1/customers HTTP/1.1\r\n",
            "name=A%20%26%20B&metadata%5Border%5D=67%2035",
        ),
        (
            "ns/GetCustomersCustomer",
            json!({ "customer": "cus_1", "expand": ["default_source"] }),
            customer(),
            "GET /base/v1/customers/cus_1?expand%5B0%5D=default_source HTTP/1.1\r\n",
            "",
        ),
        (
            "ns/GetCustomers",
            json!({ "created": { "gte": 5 }, "limit": 3 }),
            list,
            "GET /base/v1/customers?created%5Bgte%5D=5&limit=3 HTTP/1.1\r\n",
            "",
        ),
    ] {
        server.will_answer(json_answer("200 OK", &answer));
        let output = node.call(operation, input).await;
        assert_eq!(output, Ok(answer), "{operation}");
        let heard = server.heard().remove(0);
        assert!(heard.starts_with(line), "{heard}");
        assert!(heard.ends_with(&format!("\r\n\r\n{body}")), "{heard}");
        assert!(heard.contains("authorization: Bearer hush\r\n"), "{heard}");
        let form = "content-type: application/x-www-form-urlencoded\r\n";
        assert_eq!(heard.contains(form), !body.is_empty(), "{heard}");
    }
    let declined = json!({ "error": { "type": "card_error", "message": "declined" } });
    server.will_answer(json_answer("402 Payment Required", &declined));
    let error = node.call("ns/PostCustomers", json!({})).await;
    let error = error.expect_err("a status");
    assert_eq!(error.code.name(), "HTTP_402");
    assert_eq!(error.details.expect("details")["body"], declined);
}
