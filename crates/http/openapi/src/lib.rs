//! OpenAPI: the document of the gateway, and operations made of documents of others.

pub mod from;
mod to;

pub use from::{
    BaseUrlError, DocumentError, FromOpenApi, ImportError, OpenApiOptions, TokenSource,
    read_document,
};
pub use to::{CONTRACT_VERSION, Contract, document};
