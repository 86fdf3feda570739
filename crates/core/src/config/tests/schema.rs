//! The published schema, the page and the reader, held against each other.

use super::*;

const PAGE: &str = include_str!("../../../../../docs/configuration.md");

/// Key paths of the published schema.
fn schema_keys(
    schema: &serde_json::Value,
    root: &serde_json::Value,
    path: &str,
    out: &mut Vec<String>,
) {
    let schema = match schema.get("$ref").and_then(|name| name.as_str()) {
        Some(name) => root
            .pointer(&name[1..])
            .expect("a definition of the schema"),
        None => schema,
    };
    if let Some(items) = schema.get("items") {
        schema_keys(items, root, path, out);
    }
    let properties = schema.get("properties").and_then(|map| map.as_object());
    for (key, inner) in properties.into_iter().flatten() {
        let path = format!("{path}{key}");
        schema_keys(inner, root, &format!("{path}."), out);
        out.push(path);
    }
}

#[test]
fn the_page_documents_every_key_of_the_schema() {
    let schema = NodeConfig::json_schema();
    let mut keys = Vec::new();
    schema_keys(&schema, &schema, "", &mut keys);
    assert!(keys.len() >= 19, "{keys:?}");
    for key in keys.iter().filter(|key| key.contains('.')) {
        assert!(
            PAGE.contains(&format!("`{key}`")),
            "{key} is not on the page"
        );
    }
}

/// What the schema publishes is what the reader asks for, neither less nor more.
#[test]
fn the_schema_and_the_reader_know_the_same_keys() {
    let schema = NodeConfig::json_schema();
    let mut keys = Vec::new();
    schema_keys(&schema, &schema, "", &mut keys);
    let lists = [
        "network",
        "peers",
        "api_keys",
        "join",
        "credentials",
        "operations",
    ];
    for key in &keys {
        let (table, name) = key.split_once('.').unwrap_or(("", key));
        let document = match table {
            "" => format!("{name} = 5"),
            _ if lists.contains(&table) => format!("[[{table}]]\n{name} = []"),
            _ => format!("[{table}]\n{name} = {{}}"),
        };
        // Where the value is a table, an empty one is correct, and the document has no errors.
        let errors = NodeConfig::parse(document.as_bytes()).err();
        let errors: Vec<_> = errors.iter().flatten().map(ToString::to_string).collect();
        let unknown = errors.iter().any(|error| error.contains("unknown key"));
        assert!(!unknown, "the reader does not know {key}: {errors:?}");
    }
    let is_table = |key: &&String| !key.contains('.') && *key != "version";
    let tables = keys.iter().filter(is_table);
    for table in tables.map(String::as_str).chain([""]) {
        let document = match table {
            "" => "qqq = 1".to_owned(),
            _ if lists.contains(&table) => format!("[[{table}]]\nqqq = 1"),
            _ => format!("[{table}]\nqqq = 1"),
        };
        let errors = refused(&document);
        let advice = errors
            .iter()
            .find_map(|error| Some(error.split_once("known here: ")?.1));
        for name in advice.unwrap_or_else(|| panic!("{errors:?}")).split(", ") {
            let path = [table, name].join(".");
            let path = path.trim_start_matches('.');
            assert!(
                keys.iter().any(|key| key == path),
                "{path} is not in the schema"
            );
        }
    }
}

#[test]
fn the_examples_of_the_page_are_correct_documents() {
    let blocks: Vec<_> = PAGE.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let example = block.split("```").next().unwrap_or_default();
        if let Err(errors) = NodeConfig::parse(example.as_bytes()) {
            panic!("{example}\n{errors:#?}");
        }
    }
}

#[test]
fn the_schema_refuses_unknown_keys_everywhere() {
    let schema = NodeConfig::json_schema();
    let definitions = schema.get("$defs").and_then(|defs| defs.as_object());
    let tables = definitions.expect("definitions").values().chain([&schema]);
    for table in tables.filter(|table| table.get("properties").is_some()) {
        assert_eq!(
            table.get("additionalProperties"),
            Some(&false.into()),
            "{table}"
        );
    }
}

/// The gateway counts the requests of unknown peers by their networks, and a decoy switches the page off as a site does.
#[test]
fn the_schema_says_of_http_what_the_node_does() {
    let schema = NodeConfig::json_schema();
    let keys = schema.pointer("/$defs/HttpSection/properties");
    let keys = keys.and_then(|keys| keys.as_object()).expect("the section");
    let text = |key: &str| keys[key]["description"].as_str().expect("a text");
    let rates = keys
        .keys()
        .filter(|key| key.ends_with("_requests_per_second"));
    let rates: Vec<_> = rates.map(|key| text(key)).collect();
    assert_eq!(rates.len(), 1, "{rates:?}");
    assert!(rates[0].contains("one network"), "{rates:?}");
    assert!(text("page").contains("decoy"), "{}", text("page"));
}

/// A whole number of the schema.
#[derive(Debug)]
struct SchemaInteger {
    /// Its keys from the root, each with whether its value is a list.
    keys: Vec<(String, bool)>,
    least: i64,
    most: i64,
}

impl SchemaInteger {
    /// All of `schema`, at `keys`.
    fn collect(
        schema: &serde_json::Value,
        root: &serde_json::Value,
        keys: &[(String, bool)],
        out: &mut Vec<Self>,
    ) {
        let schema = match schema.get("$ref").and_then(|name| name.as_str()) {
            Some(name) => root
                .pointer(&name[1..])
                .expect("a definition of the schema"),
            None => schema,
        };
        // The schema of an optional table lists the table and null.
        let choices = schema.get("anyOf").and_then(|list| list.as_array());
        for choice in choices.into_iter().flatten() {
            Self::collect(choice, root, keys, out);
        }
        if let Some(items) = schema.get("items") {
            let mut keys = keys.to_vec();
            keys.last_mut().expect("a list has a key").1 = true;
            Self::collect(items, root, &keys, out);
        }
        let properties = schema.get("properties").and_then(|map| map.as_object());
        for (key, inner) in properties.into_iter().flatten() {
            let mut keys = keys.to_vec();
            keys.push((key.clone(), false));
            Self::collect(inner, root, &keys, out);
        }
        let kind = &schema["type"];
        let is_integer = |kind: &serde_json::Value| kind == "integer";
        if is_integer(kind)
            || kind
                .as_array()
                .is_some_and(|all| all.iter().any(is_integer))
        {
            let bound = |key: &str| {
                let bound = schema.get(key).and_then(serde_json::Value::as_i64);
                bound.unwrap_or_else(|| panic!("{keys:?} has no {key}: {schema}"))
            };
            out.push(Self {
                keys: keys.to_vec(),
                least: bound("minimum"),
                most: bound("maximum"),
            });
        }
    }

    /// Whether the reader refuses `value` here because it is out of range. Other mistakes of the document do not count:
    /// its tables have this one key.
    fn refuses(&self, value: i64) -> bool {
        let (mut path, mut text) = (String::new(), value.to_string());
        for (key, is_list) in &self.keys {
            let index = if *is_list { "[0]" } else { "" };
            path = format!("{path}.{key}{index}");
        }
        for (n, (key, is_list)) in self.keys.iter().enumerate().rev() {
            if *is_list {
                text = format!("[{text}]");
            }
            text = match n {
                0 => format!("{key} = {text}"),
                _ => format!("{{ {key} = {text} }}"),
            };
        }
        let begins = format!("line 1, {}: ", &path[1..]);
        let says = |error: &ConfigError| {
            let error = error.to_string();
            let ranges = ["is out of range", "is no port", "newer than this program"];
            error.starts_with(&begins) && ranges.iter().any(|range| error.contains(range))
        };
        let errors = NodeConfig::parse(text.as_bytes()).err();
        errors.is_some_and(|errors| errors.iter().any(says))
    }
}

/// The reader has each range in a constant, and the schema has it once more as two numbers.
#[test]
fn the_schema_publishes_the_ranges_of_the_reader() {
    let schema = NodeConfig::json_schema();
    let mut integers = Vec::new();
    SchemaInteger::collect(&schema, &schema, &[], &mut integers);
    assert!(integers.len() >= 20, "{integers:?}");
    for integer in &integers {
        let SchemaInteger { least, most, .. } = *integer;
        let refused = [least - 1, least, most, most + 1].map(|value| integer.refuses(value));
        assert_eq!(refused, [true, false, false, true], "{integer:?}");
    }
}
