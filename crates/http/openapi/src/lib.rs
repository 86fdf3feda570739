//! OpenAPI: the document of the gateway, and operations made of documents of others.

pub mod from;
mod to;

pub use from::{
    BaseUrlError, DocumentError, FetchError, FromOpenApi, ImportError, OpenApiOptions, TokenSource,
    count_operations, fetch_document, read_document,
};
pub use to::{CONTRACT_VERSION, OpenApiContract, document};
