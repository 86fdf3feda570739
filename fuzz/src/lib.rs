//! What must hold for every input of the parsers that read what strangers and administrators write.
//!
//! Each function takes any bytes, panics where a promise is broken, and says whether the parser
//! took the input. libFuzzer calls it through `targets/`; the test in `tests/` calls it with the
//! corpus. To add one: write the function, name it in [`TARGETS`], in `targets/` and in
//! `Cargo.toml`, and give it a folder of seeds in `corpus/`.

mod address;
mod config;
mod envelope;
mod frame;
mod hello;
mod join;
mod json;
mod key;
mod mixed;
mod openapi;
mod records;
mod request;
mod sealed;
mod tensor;
mod token;
mod typedef;
mod vault;

pub use address::address;
pub use config::config;
pub use envelope::envelope;
pub use frame::frame;
pub use hello::hello;
pub use join::join;
pub use key::key;
pub use mixed::mixed;
pub use openapi::openapi;
pub use records::records;
pub use request::request;
pub use sealed::sealed;
pub use tensor::tensor;
pub use token::token;
pub use typedef::typedef;
pub use vault::vault;

/// One parser and what is held against it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of its file in `targets/` and of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics where a promise is broken; whether the parser took the input.
    pub run: fn(&[u8]) -> bool,
}

/// All of them, by name.
pub const TARGETS: &[Target] = &[
    Target {
        name: "address",
        run: address,
    },
    Target {
        name: "config",
        run: config,
    },
    Target {
        name: "envelope",
        run: envelope,
    },
    Target {
        name: "frame",
        run: frame,
    },
    Target {
        name: "hello",
        run: hello,
    },
    Target {
        name: "join",
        run: join,
    },
    Target {
        name: "key",
        run: key,
    },
    Target {
        name: "mixed",
        run: mixed,
    },
    Target {
        name: "openapi",
        run: openapi,
    },
    Target {
        name: "records",
        run: records,
    },
    Target {
        name: "request",
        run: request,
    },
    Target {
        name: "sealed",
        run: sealed,
    },
    Target {
        name: "tensor",
        run: tensor,
    },
    Target {
        name: "token",
        run: token,
    },
    Target {
        name: "typedef",
        run: typedef,
    },
    Target {
        name: "vault",
        run: vault,
    },
];
