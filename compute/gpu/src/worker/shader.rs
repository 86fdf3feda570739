//! Callers' shaders: parsed, validated, and compared with their bindings, before the driver gets them.
//!
//! No capability beyond WGSL's core is allowed, and of the core only what the device supports: a driver's code for
//! 64-bit floats or subgroups would be more foreign code to trust. Overrides are refused because a dispatch cannot
//! set them, and only the driver would know the sizes that depend on them.

use alknet_compute_wire::limits::{BINDINGS_MAX, PRIVATE_BYTES_MAX, WGSL_BYTES_MAX};
use alknet_compute_wire::{Binding, BindingAccess, ShaderPosition};
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
use wgpu::naga::{
    AddressSpace, EntryPoint, Module, ShaderStage, SourceLocation, StorageAccess, front::wgsl,
    proc::Layouter,
};

use super::fault::{GpuFault, GpuResult};
use super::nesting;

/// Longest message that is passed on, in characters, because it quotes the shader.
const MESSAGE_CHARS_MAX: usize = 500;

/// The device's limits that concern a shader.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShaderLimits {
    pub(super) group_invocations: u32,
    pub(super) group_bytes: u64,
    /// Whether half floats can be packed and unpacked, which processors without F16C cannot do.
    pub(super) half_floats: bool,
}

impl ShaderLimits {
    const fn capabilities(self) -> Capabilities {
        if self.half_floats {
            return Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        }
        Capabilities::empty()
    }
}

/// Checks a shader and its bindings.
pub(super) fn check(
    wgsl: &str,
    entry: &str,
    bindings: &[Binding],
    bounds: ShaderLimits,
) -> GpuResult<()> {
    if wgsl.len() > WGSL_BYTES_MAX {
        let message = format!(
            "a shader may have {WGSL_BYTES_MAX} bytes, not {}",
            wgsl.len()
        );
        return Err(GpuFault::shader(message));
    }
    if bindings.len() > BINDINGS_MAX {
        return Err(GpuFault::shader(format!(
            "a shader may have {BINDINGS_MAX} bindings, not {}",
            bindings.len()
        )));
    }
    // The nesting is checked before the parser runs, which recurses as deep as the text nests.
    if let Some(why) = nesting::of_text(wgsl) {
        return Err(GpuFault::shader(why));
    }
    let module = wgsl::parse_str(wgsl)
        .map_err(|error| located(error.message().to_owned(), error.location(wgsl)))?;
    let mut validator = Validator::new(ValidationFlags::all(), bounds.capabilities());
    validator.validate(&module).map_err(|error| {
        let place = error.location(wgsl);
        located(chain(error.as_inner()), place)
    })?;
    if module.overrides.iter().next().is_some() {
        return Err(GpuFault::shader("overrides cannot be set here"));
    }
    if let Some(why) = nesting::of_module(&module) {
        return Err(GpuFault::shader(why));
    }
    let entry = entry_point(&module, entry)?;
    group(entry, bounds)?;
    memory(&module, bounds)?;
    bound(&module, bindings)
}

/// An error and all its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text.push_str(": ");
        text.push_str(&error.to_string());
        below = error.source();
    }
    text
}

fn located(message: String, location: Option<SourceLocation>) -> GpuFault {
    let position = location.map_or_else(ShaderPosition::default, |location| ShaderPosition {
        line: location.line_number,
        column: location.line_position,
    });
    let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    GpuFault {
        position: Some(position),
        ..GpuFault::shader(message)
    }
}

fn entry_point<'a>(module: &'a Module, name: &str) -> GpuResult<&'a EntryPoint> {
    let compute = |entry: &&EntryPoint| entry.stage == ShaderStage::Compute && entry.name == name;
    module.entry_points.iter().find(compute).ok_or_else(|| {
        // The name comes from the caller, and an error must stay short.
        let name: String = name.chars().take(64).collect();
        GpuFault::shader(format!("there is no compute entry point '{name}'"))
    })
}

fn group(entry: &EntryPoint, bounds: ShaderLimits) -> GpuResult<()> {
    let invocations = entry.workgroup_size.iter().map(|side| u64::from(*side));
    // The product of three factors of 32 bits may exceed 64 bits.
    let invocations = invocations.fold(1, u64::saturating_mul);
    if invocations > u64::from(bounds.group_invocations) {
        return Err(GpuFault::shader(format!(
            "a group of {invocations} invocations; at most {} are possible",
            bounds.group_invocations
        )));
    }
    Ok(())
}

/// Checks the memory of a workgroup and of an invocation.
fn memory(module: &Module, bounds: ShaderLimits) -> GpuResult<()> {
    // naga's layouter computes the sizes by WGSL's rules for alignment.
    let mut layouter = Layouter::default();
    layouter
        .update(module.to_ctx())
        .map_err(|error| GpuFault::shader(error.to_string()))?;
    let globals = |wanted: AddressSpace| {
        let found = module.global_variables.iter();
        let found = found.filter(move |(_, variable)| variable.space == wanted);
        found
            .map(|(_, variable)| u64::from(layouter[variable.ty].size))
            .sum::<u64>()
    };
    let entries = module.entry_points.iter().map(|entry| &entry.function);
    let functions = module.functions.iter().map(|(_, function)| function);
    let locals: u64 = functions
        .chain(entries)
        .flat_map(|function| function.local_variables.iter())
        .map(|(_, variable)| u64::from(layouter[variable.ty].size))
        .sum();
    // The sum over all functions bounds every chain of calls.
    let own = globals(AddressSpace::Private).saturating_add(locals);
    for (what, bytes, most) in [
        (
            "a group's",
            globals(AddressSpace::WorkGroup),
            bounds.group_bytes,
        ),
        ("an invocation's", own, PRIVATE_BYTES_MAX),
    ] {
        if bytes > most {
            return Err(GpuFault::shader(format!(
                "{bytes} bytes of {what} memory; at most {most} are possible"
            )));
        }
    }
    Ok(())
}

/// Checks that every resource is bound as the shader declares it, and that no other binding is given.
fn bound(module: &Module, bindings: &[Binding]) -> GpuResult<()> {
    let mut declared = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(place) = variable.binding else {
            if let AddressSpace::Immediate = variable.space {
                return Err(GpuFault::shader("there are no immediates here"));
            }
            continue;
        };
        let name = variable.name.as_deref().unwrap_or("a variable");
        if place.group != 0 {
            return Err(GpuFault::shader(format!("{name}: there is no group but 0")));
        }
        let access = match variable.space {
            AddressSpace::Uniform => BindingAccess::Uniform,
            AddressSpace::Storage { access } if access == StorageAccess::LOAD => {
                BindingAccess::Read
            }
            AddressSpace::Storage { .. } => BindingAccess::ReadWrite,
            _ => {
                return Err(GpuFault::shader(format!(
                    "{name}: only buffers can be bound"
                )));
            }
        };
        let number = place.binding;
        let given = bindings.iter().find(|given| given.binding == number);
        let given = given.ok_or_else(|| {
            GpuFault::shader(format!("{name}: nothing is bound to binding {number}"))
        })?;
        if given.access != access {
            return Err(GpuFault::shader(format!(
                "{name}: binding {number} is declared {access:?} and bound {:?}",
                given.access
            )));
        }
        declared.push(number);
    }
    let stray = bindings
        .iter()
        .find(|given| !declared.contains(&given.binding));
    if let Some(stray) = stray {
        let number = stray.binding;
        return Err(GpuFault::shader(format!(
            "binding {number} is not declared"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alknet_compute_wire::ByteSource;

    use super::*;

    const BOUNDS: ShaderLimits = ShaderLimits {
        group_invocations: 1024,
        group_bytes: 32 << 10,
        half_floats: true,
    };

    fn binding(binding: u32, access: BindingAccess) -> Binding {
        Binding {
            binding,
            access,
            from: ByteSource::Zero(4),
            to: None,
        }
    }

    fn refused(body: &str) -> GpuFault {
        let wgsl =
            format!("@group(0) @binding(0) var<storage, read_write> data: array<u32>;\n{body}\n");
        let bindings = [binding(0, BindingAccess::ReadWrite)];
        check(&wgsl, "main", &bindings, BOUNDS).expect_err("refused")
    }

    #[test]
    fn a_sound_shader_passes() {
        let wgsl = "@group(0) @binding(3) var<storage, read> a: array<u32>;
            @group(0) @binding(1) var<storage, read_write> b: array<u32>;
            @group(0) @binding(0) var<uniform> n: vec4<u32>;
            @compute @workgroup_size(8, 8) fn go() { b[0] = a[0] + n.x; }";
        let bindings = [
            binding(0, BindingAccess::Uniform),
            binding(1, BindingAccess::ReadWrite),
            binding(3, BindingAccess::Read),
        ];
        check(wgsl, "go", &bindings, BOUNDS).expect("sound");
        assert!(check(wgsl, "main", &bindings, BOUNDS).is_err());
        assert!(check(wgsl, "go", &bindings[..2], BOUNDS).is_err());
        let mut wrong = bindings.to_vec();
        wrong[2].access = BindingAccess::ReadWrite;
        assert!(check(wgsl, "go", &wrong, BOUNDS).is_err());
        wrong[2].access = BindingAccess::Read;
        wrong.push(binding(4, BindingAccess::Read));
        assert!(check(wgsl, "go", &wrong, BOUNDS).is_err());
    }

    #[test]
    fn half_floats_are_packed_where_the_device_can() {
        let wgsl = "@group(0) @binding(0) var<storage, read_write> data: array<u32>;
            @compute @workgroup_size(1) fn main() { data[0] = pack2x16float(vec2(f32(data[1]), 2.0)); }";
        let bindings = [binding(0, BindingAccess::ReadWrite)];
        check(wgsl, "main", &bindings, BOUNDS).expect("it can");
        let cannot = ShaderLimits {
            half_floats: false,
            ..BOUNDS
        };
        let failed = check(wgsl, "main", &bindings, cannot).expect_err("it cannot");
        assert!(failed.message.contains("FLOAT16"), "{failed:?}");
    }

    #[test]
    fn mistakes_have_a_place() {
        let failed = refused("@compute @workgroup_size(1) fn main() { data[0] = ; }");
        assert_eq!(failed.position.expect("a place").line, 2, "{failed:?}");
        let failed = refused("@compute @workgroup_size(1) fn main() { data[0] = 1.5; }");
        assert_eq!(failed.code, alknet_compute_wire::codes::SHADER);
    }

    #[test]
    fn what_asks_for_too_much_is_refused() {
        let cases = [
            "@compute @workgroup_size(32, 33) fn main() { data[0] = 1u; }",
            "var<workgroup> w: array<u32, 8193>;
             @compute @workgroup_size(1) fn main() { data[0] = w[data[1]]; }",
            "var<private> p: array<u32, 16385>;
             @compute @workgroup_size(1) fn main() { data[0] = p[data[1]]; }",
            "@compute @workgroup_size(1) fn main() { var p: array<vec4<u32>, 5000>; data[0] = p[data[1]].x; }",
            "override n: u32 = 3; @compute @workgroup_size(1) fn main() { data[0] = n; }",
            "enable f16; @compute @workgroup_size(1) fn main() { data[0] = u32(1.0h); }",
            "fn f() { g(); } fn g() { f(); } @compute @workgroup_size(1) fn main() { f(); }",
            "@group(1) @binding(0) var<storage> o: array<u32>;
             @compute @workgroup_size(1) fn main() { data[0] = o[0]; }",
            "@group(0) @binding(1) var t: texture_2d<f32>;
             @compute @workgroup_size(1) fn main() { data[0] = textureDimensions(t).x; }",
        ];
        for case in cases {
            refused(case);
        }
        let long = format!("//{}", "x".repeat(WGSL_BYTES_MAX));
        refused(&long);
    }

    #[test]
    fn nesting_and_length_end_in_an_answer() {
        let statements = "data[0] += 1u;\n".repeat(10_000);
        let wgsl = format!(
            "@group(0) @binding(0) var<storage, read_write> data: array<u32>;
             @compute @workgroup_size(1) fn main() {{ {statements} }}"
        );
        check(
            &wgsl,
            "main",
            &[binding(0, BindingAccess::ReadWrite)],
            BOUNDS,
        )
        .expect("long and sound");
        for (open, close) in [("(", ")"), ("{", "}"), ("-", ""), ("!", "")] {
            let deep = format!("{}1u{}", open.repeat(50_000), close.repeat(50_000));
            refused(&format!(
                "@compute @workgroup_size(1) fn main() {{ data[0] = {deep}; }}"
            ));
        }
    }
}
