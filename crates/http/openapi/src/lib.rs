//! OpenAPI: the gateway's own document, and operations that are made from the documents of other
//! servers.

pub mod from;
mod to;

pub use from::{
    BaseUrlError, DocumentError, FetchError, FromOpenApi, ImportError, OpenApiOptions, TokenSource,
    count_operations, fetch_document, read_document,
};
pub use to::{CONTRACT_VERSION, OpenApiContract, document};
