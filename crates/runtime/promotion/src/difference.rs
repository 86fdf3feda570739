//! The differences between two bundles, for a reviewer.

mod unified;

use serde_json::Value;

use crate::bundle::PromotionBundle;
use crate::limits::DIFFERENCE_BYTES_MAX;
use unified::unified;

/// The unified differences of the specification, the tests and each module, from nothing if there
/// is no earlier bundle. A long text is cut, with a line that says so.
pub(crate) fn between(before: Option<&PromotionBundle>, now: &PromotionBundle) -> String {
    let mut text = String::new();
    let (old, new) = (before.map(parts).unwrap_or_default(), parts(now));
    let gone = old
        .iter()
        .filter(|(name, _)| new.iter().all(|(it, _)| it != name));
    let names = new.iter().chain(gone).map(|(name, _)| name);
    for name in names {
        let of = |parts: &[(String, String)]| {
            let found = parts.iter().find(|(it, _)| it == name);
            found.map(|(_, text)| text.clone()).unwrap_or_default()
        };
        let (old, new) = (of(&old), of(&new));
        if old == new {
            continue;
        }
        text.push_str(&unified(name, &old, &new));
        if text.len() > DIFFERENCE_BYTES_MAX {
            let end = text.floor_char_boundary(DIFFERENCE_BYTES_MAX);
            text.truncate(end);
            text.push_str("\n… the rest is cut; the bundle itself has all of it\n");
            break;
        }
    }
    text
}

/// The texts of a bundle, by name.
fn parts(bundle: &PromotionBundle) -> Vec<(String, String)> {
    let content = bundle.content();
    let pretty = |value: Result<Value, _>| {
        let value: Value = value.unwrap_or_default();
        format!("{value:#}\n")
    };
    let head = serde_json::json!({
        "author": content.author,
        "entry": content.entry,
        "export": content.export,
        "service": content.service,
        "spec": content.spec,
    });
    let fixed = [
        (
            "specification".to_owned(),
            pretty(Ok::<_, serde_json::Error>(head)),
        ),
        (
            "tests".to_owned(),
            pretty(serde_json::to_value(&content.tests)),
        ),
    ];
    let modules = content.modules.iter();
    let modules = modules.map(|(name, text)| (name.clone(), text.clone()));
    fixed.into_iter().chain(modules).collect()
}
