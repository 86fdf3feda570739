use super::*;

fn refused(body: &str) -> (String, String) {
    let error = CallRequest::read(body.as_bytes()).expect_err("refused");
    assert_eq!(error.status, 400);
    let details = error.error.details.expect("details");
    let pointer = details["pointer"].as_str().expect("a pointer").to_owned();
    (pointer, error.error.message)
}

#[test]
fn what_is_wrong_is_named() {
    assert_eq!(refused("{}").1, "'operation' is missing");
    assert_eq!(refused("[]").1, "an object is expected");
    assert_eq!(refused(r#"{"operation":7}"#).0, "/operation");
    assert_eq!(refused(r#"{"operation":"a/b","x/y":1}"#).0, "/x~1y");
    let (at, message) = refused(r#"{"operation":"a/b","timeout_ms":-1}"#);
    assert!(at == "/timeout_ms" && message.contains("not negative"));
    let twice = refused(r#"{"operation":"a/b","operation":"a/c"}"#).1;
    assert!(
        twice.contains("duplicate") || twice.contains("twice"),
        "{twice}"
    );
    assert!(refused("{").0.is_empty());
}

#[test]
fn inputs_are_slices_of_the_body() {
    let body = Bytes::from_static(br#"{"operation":"/a/b","input": {"n":1}}"#);
    let body = RequestText::from(body);
    let request = CallRequest::read(&body.text).expect("fine");
    let invocation = request.invocation(&body).expect("fine");
    assert_eq!(invocation.input.as_deref(), Some(&br#"{"n":1}"#[..]));
    assert_eq!(invocation.operation, "/a/b");
}

#[test]
fn times_out_of_range_are_refused() {
    for ms in ["0", "600001"] {
        let body = Bytes::from(format!(r#"{{"operation":"a/b","timeout_ms":{ms}}}"#));
        let body = RequestText::from(body);
        let request = CallRequest::read(&body.text).expect("a number");
        assert!(request.invocation(&body).is_err(), "{ms}");
    }
}

#[test]
fn a_wrong_call_of_a_batch_is_named_by_its_place() {
    let body = br#"{"calls":[{"id":"a","operation":"a/b"},{"id":"b","op":"a/b"}]}"#;
    let error = BatchRequest::read(body).expect_err("refused");
    assert_eq!(
        error.error.details.expect("details")["pointer"],
        "/calls/1/op"
    );
}

#[test]
fn a_body_that_is_no_json_is_called_so() {
    for body in ["{operation:", "", "{\"operation\":\"a/b\"", "{} {}"] {
        let error = CallRequest::read(body.as_bytes()).expect_err(body).error;
        assert!(
            error.message.starts_with("the body is no JSON: "),
            "{body}: {error}"
        );
    }
    let error = CallRequest::read(b"{}").expect_err("no operation").error;
    assert_eq!(error.message, "'operation' is missing");
}

#[test]
fn deep_bodies_are_refused() {
    let deep = format!(
        r#"{{"operation":"a/b","input":{}1{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(CallRequest::read(deep.as_bytes()).is_err());
}

#[test]
fn queries_take_what_they_know() {
    let mut query = SearchQuery::default();
    for (name, value) in [("q", "Disk"), ("type", "query"), ("limit", "500")] {
        query.set(name, value).expect("fine");
    }
    assert_eq!((query.q.as_str(), query.limit()), ("disk", 500));
    for (name, value) in [
        ("limit", "0"),
        ("limit", "501"),
        ("type", "x"),
        ("sort", "a"),
    ] {
        assert!(query.set(name, value).is_err(), "{name}={value}");
    }
}

#[test]
fn a_namespace_is_no_longer_than_that_of_any_operation() {
    let longest = "n".repeat(NAMESPACE_CHARS_MAX);
    let longer = "n".repeat(NAMESPACE_CHARS_MAX + 1);
    assert!(alknet_call::is_operation_name(&format!("{longest}/x")));
    assert!(!alknet_call::is_operation_name(&format!("{longer}/x")));
    let mut query = SearchQuery::default();
    for fine in [&longest, &"é".repeat(NAMESPACE_CHARS_MAX)] {
        query.set("namespace", fine).expect("fine");
        assert_eq!(query.namespace.as_ref(), Some(fine));
    }
    let error = query.set("namespace", &longer).expect_err("refused").error;
    assert!(error.message.contains("at most 63 "), "{}", error.message);
    assert_eq!(error.details.expect("details")["pointer"], "/namespace");
}

#[test]
fn a_batch_with_too_many_calls_is_read_as_one_with_one_too_many() {
    let calls: Vec<_> = (0..10_000)
        .map(|n| format!(r#"{{"id":"{n}","operation":"a/b"}}"#))
        .collect();
    let body = format!(r#"{{"calls":[{}]}}"#, calls.join(","));
    let batch = BatchRequest::read(body.as_bytes()).expect("its shape is right");
    assert_eq!(batch.calls.len(), BATCH_CALLS_MAX + 1);
}

#[test]
fn a_batch_may_have_no_calls() {
    let batch = BatchRequest::read(br#"{"calls":[]}"#).expect("fine");
    assert!(batch.calls.is_empty());
    assert!(BatchRequest::read(b"{}").is_err());
}
