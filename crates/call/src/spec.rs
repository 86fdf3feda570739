//! The description of an operation, in the form that peers read.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::access::AccessControl;
use crate::limits::OPERATION_BYTES_MAX;

/// How a caller calls an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationType {
    /// Changes something.
    Mutation,
    /// Changes nothing.
    Query,
    /// Yields events until it ends or is aborted.
    Subscription,
}

/// Which callers can reach an operation at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Peers, subject to its access control.
    External,
    /// Other operations of this node only.
    Internal,
}

/// Whether a caller may repeat a mutation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idempotence {
    /// With an idempotency key.
    Keyed,
    /// Not idempotent.
    #[default]
    No,
    /// Idempotent without a key.
    Yes,
}

/// An error of the operation's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorDef {
    /// `[A-Z][A-Z0-9_]{2,63}`, and no code of the protocol.
    pub code: String,
    /// When it happens and what to do.
    #[serde(default)]
    pub description: String,
    /// Schema of `details`.
    #[serde(default)]
    pub schema: Value,
    /// HTTP status; 422 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
}

/// An operation as `services/schema` shows it.
///
/// ```
/// use alknet_call::{OperationSpec, OperationType};
/// use serde_json::json;
///
/// let spec = OperationSpec::query("notes/search", "Finds notes.")
///     .with_input(json!({ "type": "object" }))
///     .with_scope("notes:read");
/// assert_eq!(spec.op_type, OperationType::Query);
/// assert_eq!(spec.namespace, "notes");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationSpec {
    /// `namespace/operation`, two to four segments of `[A-Za-z][A-Za-z0-9_-]{0,62}`.
    pub name: String,
    /// The first segment of the name.
    pub namespace: String,
    /// How a caller calls it.
    pub op_type: OperationType,
    /// Which callers can reach it at all.
    pub visibility: Visibility,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// Version of the operation's contract.
    #[serde(default)]
    pub version: String,
    /// Free words for grouping.
    #[serde(default)]
    pub tags: Vec<String>,
    /// JSON Schema of the input.
    pub input_schema: Value,
    /// JSON Schema of the output, or of each event.
    pub output_schema: Value,
    /// Errors beyond the protocol's.
    #[serde(default)]
    pub error_schemas: Vec<ErrorDef>,
    /// Which callers may call it.
    #[serde(default)]
    pub access_control: AccessControl,
    /// RFC 6901 pointer to the resource id within the input. `$.x` is read as `/x`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id_path: Option<String>,
    /// Deadline when the caller names none, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_timeout_ms: Option<u32>,
    /// Whether a caller may repeat it.
    #[serde(default)]
    pub idempotent: Idempotence,
    /// The limit of calls that run at once over all connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Whether events carry a cursor to resume after.
    #[serde(default)]
    pub resumable: bool,
}

impl OperationSpec {
    /// An external operation that takes and yields every value.
    #[must_use]
    pub fn new(name: &str, op_type: OperationType, description: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: name.split('/').next().unwrap_or_default().to_owned(),
            op_type,
            visibility: Visibility::External,
            description: description.to_owned(),
            version: "1".to_owned(),
            tags: Vec::new(),
            input_schema: json!({}),
            output_schema: json!({}),
            error_schemas: Vec::new(),
            access_control: AccessControl::default(),
            resource_id_path: None,
            default_timeout_ms: None,
            idempotent: Idempotence::No,
            concurrency: None,
            resumable: false,
        }
    }

    /// A query.
    #[must_use]
    pub fn query(name: &str, description: &str) -> Self {
        Self::new(name, OperationType::Query, description)
    }

    /// A mutation.
    #[must_use]
    pub fn mutation(name: &str, description: &str) -> Self {
        Self::new(name, OperationType::Mutation, description)
    }

    /// A subscription.
    #[must_use]
    pub fn subscription(name: &str, description: &str) -> Self {
        Self::new(name, OperationType::Subscription, description)
    }

    /// The input's schema.
    #[must_use]
    pub fn with_input(mut self, schema: Value) -> Self {
        self.input_schema = schema;
        self
    }

    /// The output's schema.
    #[must_use]
    pub fn with_output(mut self, schema: Value) -> Self {
        self.output_schema = schema;
        self
    }

    /// A scope the caller must hold.
    #[must_use]
    pub fn with_scope(mut self, scope: &str) -> Self {
        self.access_control.required_scopes.push(scope.to_owned());
        self
    }

    /// Every identified caller may call it, whatever scopes the caller holds.
    #[must_use]
    pub fn with_identity(mut self) -> Self {
        self.access_control.identified = true;
        self
    }

    /// Whether only other operations of this node may call it.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.visibility = Visibility::Internal;
        self
    }
}

/// Tag of an operation that a server of another owner answers, and that this node offers to its callers.
pub const IMPORTED_TAG: &str = "imported";

/// The scope of callers that may call an imported operation: `import:` and its name with `:` for `/`.
///
/// ```
/// use alknet_call::import_scope;
///
/// assert_eq!(import_scope("forge/repos/list"), "import:forge:repos:list");
/// ```
#[must_use]
pub fn import_scope(operation: &str) -> String {
    format!("import:{}", operation.replace('/', ":"))
}

/// Whether `name` follows `seg("/"seg){1,3}` with seg = `[A-Za-z][A-Za-z0-9_-]{0,62}`.
///
/// ```
/// use alknet_call::is_operation_name;
///
/// assert!(is_operation_name("notes/search"));
/// // A name has a namespace, and no segment begins with a digit.
/// assert!(!is_operation_name("search") && !is_operation_name("notes/2"));
/// ```
#[must_use]
pub fn is_operation_name(name: &str) -> bool {
    name.len() <= OPERATION_BYTES_MAX
        && (2..=4).contains(&name.split('/').count())
        && name.split('/').all(is_segment)
}

fn is_segment(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    segment.len() <= 63
        && bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// An RFC 6901 pointer from a pointer or from `$.a.b`; `None` for every other text, array indices in brackets
/// included.
pub(crate) fn pointer(path: &str) -> Option<String> {
    match path.strip_prefix('$') {
        Some("") => Some(String::new()),
        Some(rest) => rest.strip_prefix('.').and_then(from_dotted),
        None => is_pointer(path).then(|| path.to_owned()),
    }
}

fn from_dotted(path: &str) -> Option<String> {
    let plain = |name: &str| !name.is_empty() && !name.contains(['[', ']', '*', '\'', '"']);
    path.split('.').all(plain).then(|| {
        // `~` first, as RFC 6901, section 4 unescapes it last.
        let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
        path.split('.')
            .flat_map(|name| ["/".to_owned(), escaped(name)])
            .collect()
    })
}

/// Whether every `~` is `~0` or `~1`, and every name has its slash.
fn is_pointer(path: &str) -> bool {
    let escapes = |path: &str| {
        path.split('~')
            .skip(1)
            .all(|rest| rest.starts_with(['0', '1']))
    };
    (path.is_empty() || path.starts_with('/')) && escapes(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a/b", "node/info", "a/b/c/d", "A1/b_c-d"] {
            assert!(is_operation_name(good), "{good}");
        }
        let long = format!("a/{}", "b".repeat(64));
        for bad in [
            "",
            "a",
            "/a/b",
            "a/",
            "a//b",
            "a/b/c/d/e",
            "1/a",
            "a/1",
            "a/b.c",
            "ä/b",
            &long,
        ] {
            assert!(!is_operation_name(bad), "{bad}");
        }
    }

    #[test]
    fn every_imported_operation_has_a_scope_of_its_own() {
        assert_eq!(import_scope("api/getNote"), "import:api:getNote");
        assert_ne!(import_scope("api/getNote"), import_scope("api/getnote"));
        let longest = format!("a/{}", "b".repeat(OPERATION_BYTES_MAX - 2));
        assert!(import_scope(&longest).len() <= crate::limits::SCOPE_BYTES_MAX);
    }

    #[test]
    fn json_names_are_the_documented_ones() {
        let spec = OperationSpec::query("node/info", "Facts.").with_scope("node:read");
        let text = serde_json::to_value(&spec).expect("serialisable");
        assert_eq!(text["op_type"], "query");
        assert_eq!(text["visibility"], "external");
        assert_eq!(text["idempotent"], "no");
        assert_eq!(text["access_control"]["required_scopes"][0], "node:read");
        assert_eq!(
            serde_json::from_value::<OperationSpec>(text).expect("its own text"),
            spec
        );
    }

    #[test]
    fn both_path_forms_become_pointers() {
        assert_eq!(pointer("$.a.b").as_deref(), Some("/a/b"));
        assert_eq!(pointer("/a/b").as_deref(), Some("/a/b"));
        assert_eq!(pointer("").as_deref(), Some(""));
        assert_eq!(pointer("$.a~b.c/d").as_deref(), Some("/a~0b/c~1d"));
        assert_eq!(pointer("/a~0b/~1").as_deref(), Some("/a~0b/~1"));
        for bad in [
            "a", "$a", "$.", "$..a", "$.a[0]", "$.*", "/a~2", "/a~", "$['a']",
        ] {
            assert_eq!(pointer(bad), None, "{bad}");
        }
    }
}
