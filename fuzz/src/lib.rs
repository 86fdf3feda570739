//! The properties that must hold for every input of the parsers for the text of unknown peers and administrators.
//!
//! Each function takes any bytes, panics where a promise is broken, and returns whether the parser took the input.
//! libFuzzer calls it through `targets/`; the test in `tests/` calls it with the corpus. To add one: write the
//! function, name it in [`TARGETS`], in `targets/` and in `Cargo.toml`, and give it a folder of seeds in `corpus/`.

mod address;
mod authenticode;
mod boot;
mod config;
mod dav;
mod delta;
mod disk;
mod envelope;
mod fat;
mod frame;
mod fs_address;
mod fs_sync;
mod hello;
mod hlc;
mod ifheader;
mod iroh_bytes;
mod join;
mod json;
mod key;
mod metadata;
mod mixed;
mod openapi;
mod records;
mod request;
mod sealed;
mod tensor;
mod token;
mod typedef;
mod update;
mod vault;

pub use address::address;
pub use authenticode::authenticode;
pub use boot::boot;
pub use config::config;
pub use dav::dav;
pub use delta::delta;
pub use disk::disk;
pub use envelope::envelope;
pub use fat::fat;
pub use frame::frame;
pub use fs_address::fs_address;
pub use fs_sync::fs_sync;
pub use hello::hello;
pub use hlc::hlc;
pub use ifheader::ifheader;
pub use iroh_bytes::iroh_bytes;
pub use join::join;
pub use key::key;
pub use metadata::metadata;
pub use mixed::mixed;
pub use openapi::openapi;
pub use records::records;
pub use request::request;
pub use sealed::sealed;
pub use tensor::tensor;
pub use token::token;
pub use typedef::typedef;
pub use update::update;
pub use vault::vault;

/// One parser and the checks of its results.
#[derive(Clone, Copy, Debug)]
pub struct FuzzTarget {
    /// Name of its file in `targets/` and of its folder in `corpus/`.
    pub name: &'static str,
    /// Panics where a promise is broken; returns whether the parser took the input.
    pub run: fn(&[u8]) -> bool,
}

/// All targets, by name.
pub const TARGETS: &[FuzzTarget] = &[
    FuzzTarget {
        name: "address",
        run: address,
    },
    FuzzTarget {
        name: "authenticode",
        run: authenticode,
    },
    FuzzTarget {
        name: "boot",
        run: boot,
    },
    FuzzTarget {
        name: "config",
        run: config,
    },
    FuzzTarget {
        name: "dav",
        run: dav,
    },
    FuzzTarget {
        name: "delta",
        run: delta,
    },
    FuzzTarget {
        name: "disk",
        run: disk,
    },
    FuzzTarget {
        name: "envelope",
        run: envelope,
    },
    FuzzTarget {
        name: "fat",
        run: fat,
    },
    FuzzTarget {
        name: "frame",
        run: frame,
    },
    FuzzTarget {
        name: "fs_address",
        run: fs_address,
    },
    FuzzTarget {
        name: "fs_sync",
        run: fs_sync,
    },
    FuzzTarget {
        name: "hello",
        run: hello,
    },
    FuzzTarget {
        name: "hlc",
        run: hlc,
    },
    FuzzTarget {
        name: "ifheader",
        run: ifheader,
    },
    FuzzTarget {
        name: "iroh_bytes",
        run: iroh_bytes,
    },
    FuzzTarget {
        name: "join",
        run: join,
    },
    FuzzTarget {
        name: "key",
        run: key,
    },
    FuzzTarget {
        name: "metadata",
        run: metadata,
    },
    FuzzTarget {
        name: "mixed",
        run: mixed,
    },
    FuzzTarget {
        name: "openapi",
        run: openapi,
    },
    FuzzTarget {
        name: "records",
        run: records,
    },
    FuzzTarget {
        name: "request",
        run: request,
    },
    FuzzTarget {
        name: "sealed",
        run: sealed,
    },
    FuzzTarget {
        name: "tensor",
        run: tensor,
    },
    FuzzTarget {
        name: "token",
        run: token,
    },
    FuzzTarget {
        name: "typedef",
        run: typedef,
    },
    FuzzTarget {
        name: "update",
        run: update,
    },
    FuzzTarget {
        name: "vault",
        run: vault,
    },
];
