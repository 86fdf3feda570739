use serde_json::json;

use super::*;

fn writing(style: ParameterStyle, explode: bool) -> ParameterSerialization {
    ParameterSerialization {
        style,
        explode,
        reserved: false,
    }
}

fn query(name: &str, value: &Value, writing: ParameterSerialization) -> String {
    let mut budget = RequestByteBudget::head();
    let mut pairs = PairWriter::new(&mut budget, "&");
    pairs.add(name, value, writing).expect("short");
    pairs.finish()
}

/// The table of OpenAPI 3.1, section 4.8.12.4.
#[test]
fn the_styles_of_the_specification() {
    let (text, list) = (json!("blue"), json!(["blue", "black", "brown"]));
    let object = json!({"R": 100, "G": 200, "B": 150});
    let path = |style, explode, value: &Value| {
        let written = segment(
            "color",
            value,
            writing(style, explode),
            &mut RequestByteBudget::head(),
        );
        written.expect("short").unwrap_or_default()
    };
    for (style, explode, one, many, members) in [
        (
            ParameterStyle::Matrix,
            false,
            ";color=blue",
            ";color=blue,black,brown",
            ";color=R,100,G,200,B,150",
        ),
        (
            ParameterStyle::Matrix,
            true,
            ";color=blue",
            ";color=blue;color=black;color=brown",
            ";R=100;G=200;B=150",
        ),
        (
            ParameterStyle::Label,
            false,
            ".blue",
            ".blue,black,brown",
            ".R,100,G,200,B,150",
        ),
        (
            ParameterStyle::Label,
            true,
            ".blue",
            ".blue.black.brown",
            ".R=100.G=200.B=150",
        ),
        (
            ParameterStyle::Simple,
            false,
            "blue",
            "blue,black,brown",
            "R,100,G,200,B,150",
        ),
        (
            ParameterStyle::Simple,
            true,
            "blue",
            "blue,black,brown",
            "R=100,G=200,B=150",
        ),
    ] {
        assert_eq!(path(style, explode, &text), one);
        assert_eq!(path(style, explode, &list), many);
        assert_eq!(path(style, explode, &object), members);
    }
    let ask = |style, explode, value: &Value| query("color", value, writing(style, explode));
    for (style, explode, value, text) in [
        (
            ParameterStyle::Form,
            false,
            &list,
            "color=blue%2Cblack%2Cbrown",
        ),
        (
            ParameterStyle::Form,
            true,
            &list,
            "color=blue&color=black&color=brown",
        ),
        (
            ParameterStyle::Form,
            false,
            &object,
            "color=R%2C100%2CG%2C200%2CB%2C150",
        ),
        (ParameterStyle::Form, true, &object, "R=100&G=200&B=150"),
        (
            ParameterStyle::SpaceDelimited,
            false,
            &list,
            "color=blue%20black%20brown",
        ),
        (
            ParameterStyle::PipeDelimited,
            false,
            &list,
            "color=blue%7Cblack%7Cbrown",
        ),
        (
            ParameterStyle::DeepObject,
            true,
            &object,
            "color%5BR%5D=100&color%5BG%5D=200&color%5BB%5D=150",
        ),
    ] {
        assert_eq!(ask(style, explode, value), text);
    }
    let nested = json!({"a": {"b": [1, {"c": "x y"}]}, "n": null});
    assert_eq!(
        query("f", &nested, writing(ParameterStyle::DeepObject, true)),
        "f%5Ba%5D%5Bb%5D%5B0%5D=1&f%5Ba%5D%5Bb%5D%5B1%5D%5Bc%5D=x%20y"
    );
}

#[test]
fn nothing_gets_out_of_its_place() {
    let simple = writing(ParameterStyle::Simple, false);
    let path =
        |value: Value| segment("x", &value, simple, &mut RequestByteBudget::head()).expect("short");
    assert_eq!(path(json!("../a?b#c")).as_deref(), Some("..%2Fa%3Fb%23c"));
    assert_eq!(path(json!("")), None);
    assert_eq!(path(json!(null)), None);
    let reserved = ParameterSerialization {
        reserved: true,
        ..ParameterSerialization::FORM
    };
    let reserved = query("a&b", &json!("c&d=e#f /?"), reserved);
    assert_eq!(reserved, "a%26b=c%26d%3De%23f%20/?");
    for own in ["Host", "content-length", "AUTHORIZATION", "a b", ""] {
        assert!(!is_free_header(own), "{own}");
    }
    assert!(is_free_header("X-Request-Id"));
}
