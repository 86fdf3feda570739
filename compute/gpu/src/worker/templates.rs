//! Kernels of ours, made from templates and kept once compiled.

use handlebars::{Handlebars, no_escape};
use serde_json::json;

use super::fault::{Failed, Outcome};
use crate::device::{Device, Kernel};

/// Rows of the product that one invocation has in registers. Eight need a second of compiling on a
/// processor and are slower for it.
const ROWS: u32 = 4;

/// Invocations of a group, in columns and rows, on a processor: a group is one thread's job.
const GROUP: [u32; 2] = [8, 8];

/// Each is compiled when it is first wanted.
#[derive(Debug, Default)]
pub(super) struct Kernels {
    block: Option<Kernel>,
    pack: Option<Kernel>,
    sha256: Option<Kernel>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name {
    Block,
    Pack,
    Sha256,
}

impl Kernels {
    /// The kernel, and whether it was compiled just now.
    pub(super) fn get(&mut self, device: &Device, name: Name) -> Outcome<(&Kernel, bool)> {
        let slot = match name {
            Name::Block => &mut self.block,
            Name::Pack => &mut self.pack,
            Name::Sha256 => &mut self.sha256,
        };
        let fresh = slot.is_none();
        if fresh {
            *slot = Some(device.kernel(&source(name)?, &[])?);
        }
        let kernel = slot.as_ref();
        let kernel = kernel.ok_or_else(|| Failed::internal("a kernel that is not there"))?;
        Ok((kernel, fresh))
    }
}

fn source(name: Name) -> Outcome<String> {
    Ok(match name {
        Name::Block => block(ROWS, GROUP)?,
        Name::Pack => include_str!("../shaders/pack.wgsl").to_owned(),
        Name::Sha256 => include_str!("../shaders/sha256.wgsl").to_owned(),
    })
}

/// Groups of the block kernel for a product of so many columns and rows, both multiples of four.
pub(super) const fn block_groups(columns: u32, rows: u32) -> [u32; 3] {
    [
        (columns / 4).div_ceil(GROUP[0]),
        rows.div_ceil(ROWS).div_ceil(GROUP[1]),
        1,
    ]
}

/// Rows of the product are made in multiples of it.
pub(super) const fn block_rows() -> u32 {
    ROWS
}

fn block(rows: u32, group: [u32; 2]) -> Outcome<String> {
    let mut engine = Handlebars::new();
    // A name that is missing is a mistake, and WGSL is no HTML.
    engine.set_strict_mode(true);
    engine.register_escape_fn(no_escape);
    let variables = json!({
        "columns_at_once": group[0],
        "rows_at_once": group[1],
        "height": rows,
        "rows": (0..rows).collect::<Vec<_>>(),
        "steps": [
            { "number": 0, "lane": "x" },
            { "number": 1, "lane": "y" },
            { "number": 2, "lane": "z" },
            { "number": 3, "lane": "w" },
        ],
    });
    let template = include_str!("../shaders/block.wgsl.hbs");
    let made = engine.render_template(template, &variables);
    made.map_err(|error| Failed::internal(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use wgpu::naga::front::wgsl;
    use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::*;

    #[test]
    fn every_variant_is_a_valid_shader() {
        let mut shaders = Vec::new();
        for rows in [1, 2, 4, 8] {
            for group in [[8, 8], [8, 1], [64, 1], [16, 16]] {
                shaders.push(block(rows, group).expect("made"));
            }
        }
        for name in [Name::Block, Name::Pack, Name::Sha256] {
            shaders.push(source(name).expect("made"));
        }
        for shader in shaders {
            let module = wgsl::parse_str(&shader);
            let module = module.unwrap_or_else(|error| panic!("{}", error.emit_to_string(&shader)));
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
            validator.validate(&module).expect("valid");
        }
    }
}
