//! Kernels of this program, rendered from templates and cached once compiled.

use handlebars::{Handlebars, no_escape};
use serde_json::json;

use super::fault::{GpuFault, GpuResult};
use super::order::arranged;
use crate::device::{GpuDevice, ShaderPipeline};
use crate::error::{Error, Result};
use crate::host::MatrixView;

/// Rows of the product that one invocation keeps in registers. With eight, a processor's driver compiles for a
/// second, and the kernel is slower.
const ROWS: u32 = 4;

/// Invocations of a workgroup, in columns and rows, on a processor, where one thread runs a workgroup.
const GROUP: [u32; 2] = [8, 8];

/// Rows of the product for each lane of a subgroup that shares its loads. More rows need fewer loads and longer
/// compiling.
const ROWS_FOR_LANE: u32 = 2;

/// Subgroups in a workgroup of the kernel that shares loads.
const SUBGROUPS: u32 = 4;

/// Sizes of subgroups for which the kernel that shares loads is rendered.
const LANES: std::ops::RangeInclusive<u32> = 4..=16;

/// Steps along a row of A that are taken at once, with the component of four elements that holds each.
const STEPS: [(u32, &str); 4] = [(0, "x"), (1, "y"), (2, "z"), (3, "w")];

/// Each kernel is compiled when a request first needs it.
#[derive(Debug, Default)]
pub(super) struct KernelCache {
    product: Option<(MatmulPlan, ShaderPipeline)>,
    pack: Option<ShaderPipeline>,
    sha256: Option<ShaderPipeline>,
}

/// The name of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum KernelName {
    Pack,
    Sha256,
}

impl KernelCache {
    /// The kernel with this name. `compile` makes it if it does not exist yet and runs it once, because drivers
    /// compile a shader when it first runs.
    pub(super) fn get(
        &mut self,
        name: KernelName,
        compile: impl FnOnce(&str) -> GpuResult<ShaderPipeline>,
    ) -> GpuResult<&ShaderPipeline> {
        let slot = match name {
            KernelName::Pack => &mut self.pack,
            KernelName::Sha256 => &mut self.sha256,
        };
        if slot.is_none() {
            *slot = Some(compile(&source(name)?)?);
        }
        let kernel = slot.as_ref();
        kernel.ok_or_else(|| GpuFault::internal("a kernel that is not there"))
    }

    /// The matrix kernel, and how it divides its work. `compile` makes it if it does not exist yet.
    pub(super) fn product(
        &mut self,
        compile: impl FnOnce() -> GpuResult<(MatmulPlan, ShaderPipeline)>,
    ) -> GpuResult<(&ShaderPipeline, MatmulPlan)> {
        if self.product.is_none() {
            self.product = Some(compile()?);
        }
        let product = self.product.as_ref();
        let (plan, kernel) =
            product.ok_or_else(|| GpuFault::internal("a kernel that is not there"))?;
        Ok((kernel, *plan))
    }
}

/// How a product is divided among workgroups, and by which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatmulPlan {
    /// Rows are padded to multiples of this.
    pub(crate) height: u32,
    /// Columns, in fours, and rows of a workgroup.
    covers: [u32; 2],
    /// Size of the subgroups that share their loads.
    lanes: Option<u32>,
}

/// The order in which the kernel reads its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixOrder {
    /// Rows of a strip of A.
    pub(crate) rows: usize,
    /// Columns of a strip of B; the columns of the product are padded to a multiple of this.
    pub(crate) columns: usize,
}

impl MatmulPlan {
    /// The plan in which every invocation loads for itself.
    pub(crate) const BLOCK: Self = Self {
        height: ROWS,
        covers: [GROUP[0], GROUP[1] * ROWS],
        lanes: None,
    };

    /// The plan in which subgroups of `lanes` share their loads.
    const fn shared(lanes: u32) -> Self {
        let height = lanes * ROWS_FOR_LANE;
        Self {
            height,
            covers: [lanes, height * SUBGROUPS],
            lanes: Some(lanes),
        }
    }

    /// The plan to try first: on a processor each load of each lane costs time.
    pub(crate) fn first(device: &GpuDevice) -> Self {
        let info = &device.found.info;
        let lanes = info.subgroup_min_size;
        // A size that changes between dispatches cannot be written into a kernel.
        let known = lanes == info.subgroup_max_size && LANES.contains(&lanes);
        // On a GPU the loads of neighbouring lanes are combined by hardware.
        let processor = info.device_type == wgpu::DeviceType::Cpu;
        if known && processor && device.host_memory && device.has(wgpu::Features::SUBGROUP) {
            return Self::shared(lanes);
        }
        Self::BLOCK
    }

    /// The order of the matrices in memory; `None` for row by row.
    pub(crate) fn order(&self) -> Option<MatrixOrder> {
        self.lanes.map(|lanes| MatrixOrder {
            rows: self.height as usize,
            columns: 4 * lanes as usize,
        })
    }

    /// The product's rows and columns with padding.
    pub(crate) const fn padded(&self, rows: u32, columns: u32) -> [u32; 2] {
        let columns_at_once = match self.lanes {
            Some(lanes) => 4 * lanes,
            None => 4,
        };
        [
            rows.next_multiple_of(self.height),
            columns.next_multiple_of(columns_at_once),
        ]
    }

    /// Workgroups for a product of this padded size.
    pub(crate) const fn groups(&self, columns: u32, rows: u32) -> [u32; 3] {
        [
            (columns / 4).div_ceil(self.covers[0]),
            rows.div_ceil(self.covers[1]),
            1,
        ]
    }

    pub(crate) fn source(&self) -> Result<String> {
        match self.lanes {
            Some(lanes) => shared(lanes, self.height, SUBGROUPS),
            None => block(self.height, GROUP),
        }
    }
}

/// The first kernel that multiplies correctly: only the device knows which lanes of a workgroup form a subgroup, so
/// each kernel is tried.
pub(super) fn best_product(device: &GpuDevice) -> GpuResult<(MatmulPlan, ShaderPipeline)> {
    for plan in [MatmulPlan::first(device), MatmulPlan::BLOCK] {
        let kernel = device.kernel(&plan.source()?, &[])?;
        if multiplies(device, plan, &kernel)? {
            return Ok((plan, kernel));
        }
    }
    Err(GpuFault::internal("no kernel multiplies as it should"))
}

/// Whether a small product is right to the last bit, which its small integers allow.
fn multiplies(device: &GpuDevice, plan: MatmulPlan, kernel: &ShaderPipeline) -> GpuResult<bool> {
    let [rows, columns] = plan.padded(plan.height * 3, plan.covers[0] * 4 + 4);
    let depth = 8;
    let numbers = |count: u32, by: u32| -> Vec<f32> {
        (0..count).map(|i| (i * by % 13) as f32 - 6.0).collect()
    };
    let (a, b) = (numbers(rows * depth, 7), numbers(depth * columns, 5));
    let (x, y) = (
        MatrixView::contiguous(&a, rows as usize, depth as usize),
        MatrixView::contiguous(&b, depth as usize, columns as usize),
    );
    let [x, y] = arranged(plan.order(), x, y);
    let buffers = [
        device.upload(bytemuck::cast_slice(&x))?,
        device.upload(bytemuck::cast_slice(&y))?,
        device.buffer(u64::from(rows * columns) * size_of::<f32>() as u64)?,
        device.upload(bytemuck::cast_slice(&[columns / 4, depth / 4, rows, 0]))?,
    ];
    device.dispatch(kernel, &buffers.each_ref(), plan.groups(columns, rows))?;
    let expected = (0..rows).flat_map(|row| {
        let (a, b) = (&a, &b);
        (0..columns).map(move |column| {
            let terms = (0..depth)
                .map(|k| a[(row * depth + k) as usize] * b[(k * columns + column) as usize]);
            terms.sum::<f32>()
        })
    });
    let expected: Vec<f32> = expected.collect();
    let right = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, f32>(bytes) == expected;
    Ok(device.with_read(&buffers[2], right)?)
}

fn source(name: KernelName) -> Result<String> {
    Ok(match name {
        KernelName::Pack => include_str!("../shaders/pack.wgsl").to_owned(),
        KernelName::Sha256 => include_str!("../shaders/sha256.wgsl").to_owned(),
    })
}

fn block(rows: u32, group: [u32; 2]) -> Result<String> {
    let variables = json!({
        "columns_at_once": group[0],
        "rows_at_once": group[1],
        "height": rows,
        "rows": (0..rows).collect::<Vec<_>>(),
        "steps": STEPS.map(|(number, lane)| json!({ "number": number, "lane": lane })),
    });
    rendered(include_str!("../shaders/block.wgsl.hbs"), &variables)
}

/// The source of the kernel that shares loads: `height` rows for each subgroup of `lanes`, `subgroups` of them in a
/// workgroup.
fn shared(lanes: u32, height: u32, subgroups: u32) -> Result<String> {
    let rows =
        (0..height).map(|row| json!({ "row": row, "part": row / lanes, "lane": row % lanes }));
    let parts =
        (0..height.div_ceil(lanes)).map(|part| json!({ "part": part, "first": part * lanes }));
    let variables = json!({
        "lanes": lanes,
        "height": height,
        "columns": 4 * lanes,
        "subgroups": subgroups,
        "rows": rows.collect::<Vec<_>>(),
        "parts": parts.collect::<Vec<_>>(),
        "steps": STEPS.map(|(number, lane)| {
            json!({ "number": number, "lane": lane, "offset": number * lanes })
        }),
    });
    rendered(include_str!("../shaders/shared.wgsl.hbs"), &variables)
}

fn rendered(template: &str, variables: &serde_json::Value) -> Result<String> {
    let mut engine = Handlebars::new();
    // Strict mode reports a missing name, and WGSL needs no escaping for HTML.
    engine.set_strict_mode(true);
    engine.register_escape_fn(no_escape);
    let made = engine.render_template(template, variables);
    made.map_err(|error| Error::Worker(error.to_string()))
}

#[cfg(test)]
mod tests {
    use wgpu::naga::front::wgsl;
    use wgpu::naga::valid::{
        Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
    };

    use super::*;

    #[test]
    fn every_variant_is_a_valid_shader() {
        let mut shaders = Vec::new();
        for rows in [1, 2, 4, 8] {
            for group in [[8, 8], [8, 1], [64, 1], [16, 16]] {
                shaders.push(block(rows, group).expect("made"));
            }
        }
        for lanes in LANES {
            for subgroups in [1, SUBGROUPS] {
                let height = lanes * ROWS_FOR_LANE;
                shaders.push(shared(lanes, height, subgroups).expect("made"));
            }
        }
        for name in [KernelName::Pack, KernelName::Sha256] {
            shaders.push(source(name).expect("made"));
        }
        for shader in shaders {
            let module = wgsl::parse_str(&shader);
            let module = module.unwrap_or_else(|error| panic!("{}", error.emit_to_string(&shader)));
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP);
            validator.subgroup_stages(ShaderStages::COMPUTE);
            validator.subgroup_operations(SubgroupOperationSet::all());
            validator.validate(&module).expect("valid");
        }
    }
}
