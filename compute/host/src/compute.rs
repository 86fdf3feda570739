//! The state that all operations share: the workers, their tenants, and what is known of the device.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::{CallError, Ctx};
use alknet_compute_wire::limits::BUFFERS_BYTES_MAX;
use alknet_compute_wire::{GpuWorkerInfo, KernelVariant, MachineSpeed};
use alknet_core::BoxFuture;
use alknet_worker::{RevocableMemfd, RoleConfig, WorkerRole, Workers};

use crate::choose::{KernelKind, TimingRecords, VariantReason, claimed_ms, is_speed, other};
use crate::copies::{CopyBudget, CopyReservation};
use crate::error::{Error, Result};
use crate::limits::{
    GPU_TIME, IDLE, LEASE, ORPHAN_LEASE, REFERENCED_BYTES_MAX, REFERENCED_WAIT, RIGHTS_MAX,
    TENANTS_MAX, TICK,
};
use crate::tenant::{Tenant, TenantKey};
use crate::tensor::TensorSpec;
use crate::timings_cache::{TimingsCache, TimingsMachine};
use crate::turn::WorkerTurn;

/// Memory of a worker beyond its buffers: the program, generated code, stacks.
const WORKER_BYTES: u64 = 512 << 20;

/// Variable with the name of the one driver that a worker uses.
const DRIVER: &str = "ALKNET_GPU_DRIVER";

/// The name that stands for no driver; shaders are refused then.
const NO_DRIVER: &str = "none";

/// The settings of computing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ComputeSettings {
    /// Threads of the kernels that run on the processor. Usually as many as shaders use (see [`role`]).
    pub threads: u32,
    /// Time on the GPU of one request.
    pub gpu_time: Duration,
    /// Bytes of all tensors of one identity.
    pub tenant_bytes: u64,
    /// Bytes of the copies of stored tensors to which the requests of all identities refer.
    pub referenced_bytes: u64,
    /// How long a request waits for room that other requests hold for such copies.
    pub referenced_wait: Duration,
    /// Identities, and rights of operations on their behalf, that have a worker at the same time.
    pub tenants_max: usize,
    /// How long a handle lives after its last use.
    pub lease: Duration,
    /// How long a handle lives after the connection that used it last has ended.
    pub orphan_lease: Duration,
    /// How long a worker without handles stays for its identity.
    pub idle: Duration,
    /// How often leases are checked.
    pub tick: Duration,
    /// Whether the kernels of this crate may run on the processor if the caller names no variant. If not, they run as
    /// shaders wherever there is an adapter.
    pub host_kernels: bool,
    /// The only driver that runs shaders, by its name; `none` for no driver. If absent, the best adapter of any
    /// driver runs them.
    pub driver: Option<String>,
    /// File of the persistent cache of kernel timings; if absent, timings do not survive a restart.
    pub measured: Option<PathBuf>,
}

impl Default for ComputeSettings {
    fn default() -> Self {
        Self {
            threads: threads(),
            gpu_time: GPU_TIME,
            tenant_bytes: BUFFERS_BYTES_MAX,
            referenced_bytes: REFERENCED_BYTES_MAX,
            referenced_wait: REFERENCED_WAIT,
            tenants_max: TENANTS_MAX,
            lease: LEASE,
            orphan_lease: ORPHAN_LEASE,
            idle: IDLE,
            tick: TICK,
            host_kernels: true,
            driver: None,
            measured: None,
        }
    }
}

/// Processors of this machine.
fn threads() -> u32 {
    let processors = std::thread::available_parallelism();
    processors.map_or(1, |processors| {
        u32::try_from(processors.get()).unwrap_or(u32::MAX)
    })
}

/// The configuration of workers of role `gpu`: memory for their buffers, as many threads for shaders as the settings
/// have for kernels on the processor, and the driver of the settings.
#[must_use]
pub fn role(settings: &ComputeSettings) -> RoleConfig {
    let mut role = RoleConfig::new(WorkerRole::Gpu);
    role.memory_bytes = settings.tenant_bytes.saturating_add(WORKER_BYTES);
    let threads = settings.threads.to_string();
    role.environment
        .push(("LP_NUM_THREADS".to_owned(), threads));
    let driver = settings.driver.clone();
    role.environment
        .extend(driver.map(|driver| (DRIVER.to_owned(), driver)));
    role
}

/// Finds the tensor to which `{"ref": …}` refers; the tensor store implements it.
pub trait TensorReferences: Send + Sync + 'static {
    /// Finds the tensor for the caller of `ctx`, who needs the same rights as for `tensor/open`.
    ///
    /// # Errors
    /// As `tensor/open`; the caller gets the error unchanged.
    fn find(
        &self,
        ctx: &Ctx,
        reference: &str,
    ) -> BoxFuture<'static, std::result::Result<ReferencedTensor, CallError>>;
}

/// A stored tensor that was found and is not copied yet.
pub struct ReferencedTensor {
    /// The element type as containers name it.
    pub dtype: String,
    /// Elements in each dimension.
    pub shape: Vec<u64>,
    /// Copies all of its bytes without gaps. It is called on a thread that may block, once there is room for the
    /// bytes.
    pub copy: Box<dyn FnOnce() -> std::result::Result<RevocableMemfd, CallError> + Send>,
}

impl fmt::Debug for ReferencedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReferencedTensor")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// The state behind the operations. Clones share it.
#[derive(Clone)]
pub struct Compute(pub(crate) Arc<ComputeInner>);

impl fmt::Debug for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compute")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

pub(crate) struct ComputeInner {
    pub(crate) workers: Workers,
    pub(crate) settings: ComputeSettings,
    references: Option<Arc<dyn TensorReferences>>,
    /// The room for copies of stored tensors.
    copies: Arc<CopyBudget>,
    tenants: Mutex<HashMap<TenantKey, Arc<Tenant>>>,
    known: Mutex<WorkerFacts>,
}

/// The facts that workers reported.
#[derive(Debug, Default)]
struct WorkerFacts {
    info: Option<Arc<GpuWorkerInfo>>,
    measured: Option<MachineSpeed>,
    records: TimingRecords,
}

impl Compute {
    /// Uses these workers. No worker is started yet.
    #[must_use]
    pub fn new(workers: Workers, settings: ComputeSettings) -> Self {
        Self::make(workers, settings, None)
    }

    /// The same, with a store of tensors.
    #[must_use]
    pub fn with_references(
        workers: Workers,
        settings: ComputeSettings,
        references: Arc<dyn TensorReferences>,
    ) -> Self {
        Self::make(workers, settings, Some(references))
    }

    fn make(
        workers: Workers,
        settings: ComputeSettings,
        references: Option<Arc<dyn TensorReferences>>,
    ) -> Self {
        let copies = Arc::new(CopyBudget::new(settings.referenced_bytes));
        Self(Arc::new(ComputeInner {
            workers,
            settings,
            references,
            copies,
            tenants: Mutex::default(),
            known: Mutex::default(),
        }))
    }

    /// What the driver of the settings lacks, once a worker has tried it. No other driver replaces it: shaders are
    /// refused, and the processor does the rest.
    #[must_use]
    pub fn driver_missing(&self) -> Option<String> {
        let wanted = self.0.settings.driver.as_deref();
        let info = self.info().filter(|info| info.adapter.is_none())?;
        wanted
            .is_some_and(|wanted| wanted != NO_DRIVER)
            .then(|| self.lack(&info))
    }

    /// Why no adapter can run a shader.
    pub(crate) fn lack(&self, info: &GpuWorkerInfo) -> String {
        let reason = info.reason.clone().unwrap_or_default();
        match self.0.settings.driver.as_deref() {
            None => reason,
            Some(NO_DRIVER) => "no driver is wanted here".to_owned(),
            Some(wanted) => {
                format!("only the driver '{wanted}' is wanted here, and it gives nothing: {reason}")
            }
        }
    }

    /// Waits for the caller's turn, and starts a worker for it if needed.
    pub(crate) async fn turn(&self, ctx: &Ctx) -> Result<WorkerTurn> {
        let tenant = self.tenant(ctx)?;
        WorkerTurn::begin(self, tenant, ctx).await
    }

    /// Resolves a reference. Nothing is copied yet.
    pub(crate) async fn find(
        &self,
        ctx: &Ctx,
        reference: &str,
    ) -> Result<(ReferencedTensor, TensorSpec)> {
        let Some(references) = &self.0.references else {
            let mut error = CallError::unavailable("this node stores no tensors");
            // A node without a store answers the same to every repetition.
            error.retryable = false;
            return Err(error.into());
        };
        let mut found = references.find(ctx, reference).await?;
        let kind = TensorSpec::from_parts(&found.dtype, std::mem::take(&mut found.shape))?;
        Ok((found, kind))
    }

    /// Waits until `bytes` bytes may be copied for a tenant, beside the copies of all other requests.
    ///
    /// # Errors
    /// The bytes exceed the limit, or there was no room in time.
    pub(crate) async fn reserve_copies(
        &self,
        tenant: &Tenant,
        bytes: u64,
    ) -> Result<CopyReservation> {
        let patience = self.0.settings.referenced_wait;
        self.0
            .copies
            .claim(tenant.identity(), bytes, patience)
            .await
    }

    fn tenant(&self, ctx: &Ctx) -> Result<Arc<Tenant>> {
        let key = TenantKey::from_ctx(ctx);
        let mut tenants = lock(&self.0.tenants);
        if let Some(tenant) = tenants.get(&key) {
            return Ok(Arc::clone(tenant));
        }
        // Operations that differ in rights take no more of the node than a few tenants, and none of what the identity
        // asks for itself.
        let is_beside = |other: &TenantKey| other.is_below() && other.is_beside(&key);
        if key.is_below() && !has_capacity(&mut tenants, RIGHTS_MAX, is_beside) {
            return Err(Error::Overloaded(format!(
                "operations with {RIGHTS_MAX} other rights compute for this identity"
            )));
        }
        let most = self.0.settings.tenants_max;
        // Those of operations leave half to requests of identities themselves.
        let of_operations = (most / 2).max(1);
        let is_full_of_operations =
            key.is_below() && !has_capacity(&mut tenants, of_operations, TenantKey::is_below);
        if is_full_of_operations || !has_capacity(&mut tenants, most, |_| true) {
            return Err(Error::Overloaded(format!("{most} others are computing")));
        }
        let tenant = Arc::new(Tenant::new(key.clone()));
        tenants.insert(key, Arc::clone(&tenant));
        tenant.look_after(&self.0);
        Ok(tenant)
    }

    /// The facts that the last worker reported.
    pub(crate) fn info(&self) -> Option<Arc<GpuWorkerInfo>> {
        lock(&self.0.known).info.clone()
    }

    pub(crate) fn measured(&self) -> Option<MachineSpeed> {
        lock(&self.0.known).measured
    }

    /// Takes the facts that a worker reported.
    pub(crate) fn learn(&self, info: &Arc<GpuWorkerInfo>) {
        let mut known = lock(&self.0.known);
        let name = |info: &GpuWorkerInfo| {
            let adapter = info.adapter.as_ref();
            adapter.map(|adapter| (adapter.name.clone(), adapter.versions.clone()))
        };
        // Measurements of another adapter say nothing about this one.
        if known.info.as_deref().map(name) != Some(name(info)) {
            (known.measured, known.records) = self.cached(info).unwrap_or_default();
            match &info.adapter {
                Some(adapter) => tracing::info!(
                    adapter = adapter.name,
                    reason = info.reason,
                    "computing has an adapter"
                ),
                None => tracing::warn!(reason = self.lack(info), "computing has no adapter"),
            }
        }
        known.info = Some(Arc::clone(info));
    }

    /// The cached measurements of this adapter from before the start of the node.
    fn cached(&self, info: &GpuWorkerInfo) -> Option<(Option<MachineSpeed>, TimingRecords)> {
        let file = self.0.settings.measured.as_ref()?;
        let machine = TimingsMachine::from_adapter(info.adapter.as_ref()?, self.0.settings.threads);
        TimingsCache::load(file, &machine)
    }

    /// Writes the current measurements to the cache.
    fn write_cache(&self, known: &WorkerFacts) {
        let Some(file) = self.0.settings.measured.clone() else {
            return;
        };
        let Some(adapter) = known.info.as_ref().and_then(|info| info.adapter.as_ref()) else {
            return;
        };
        let machine = TimingsMachine::from_adapter(adapter, self.0.settings.threads);
        let cache = TimingsCache::new(machine, known.measured, &known.records);
        // No caller waits for this write. If two writes overlap, either of them may stay in the file.
        drop(tokio::task::spawn_blocking(move || cache.save(&file)));
    }

    pub(crate) fn learn_measured(&self, measured: MachineSpeed) {
        // All tenants compute by it, also after a restart, and one tenant's worker said it.
        if !is_speed(&measured) {
            tracing::warn!(?measured, "a worker measured what no machine has");
            return;
        }
        let mut known = lock(&self.0.known);
        known.measured = Some(measured);
        self.write_cache(&known);
    }

    /// Records the time that a worker claims for a kernel; the node waited `elapsed` for the answer.
    pub(crate) fn record(
        &self,
        kernel: KernelKind,
        operations: f64,
        variant: KernelVariant,
        ms: f64,
        elapsed: Duration,
    ) {
        let ms = claimed_ms(ms, elapsed);
        let mut known = lock(&self.0.known);
        // A correction of a known record is not worth a write.
        if known.records.record(kernel, operations, variant, ms) {
            self.write_cache(&known);
        }
    }

    pub(crate) fn choose(
        &self,
        kernel: KernelKind,
        operations: f64,
        info: &GpuWorkerInfo,
    ) -> (KernelVariant, VariantReason) {
        // Without an adapter the kernels of the processor are the only ones.
        if !self.0.settings.host_kernels && info.adapter.is_some() {
            return (KernelVariant::Wgsl, VariantReason::Class);
        }
        let mut known = lock(&self.0.known);
        let known = &mut *known;
        let records = &mut known.records;
        let (variant, why) = records.choose(kernel, operations, info, known.measured.as_ref());
        let most = self.0.settings.gpu_time;
        if why == VariantReason::Measured && records.is_trial(kernel, operations, variant, most) {
            return (other(variant), VariantReason::Trial);
        }
        (variant, why)
    }
}

impl ComputeInner {
    /// Removes an identity that has no handles and a whole byte-time budget, unless one of its requests is under way.
    pub(crate) fn forget(&self, tenant: &Arc<Tenant>) -> bool {
        let mut tenants = lock(&self.tenants);
        // One reference is the table's, the other is the caller's.
        let unused = Arc::strong_count(tenant) <= 2 && tenant.is_idle();
        let known = tenants.get(tenant.key());
        if unused && known.is_some_and(|known| Arc::ptr_eq(known, tenant)) {
            tenants.remove(tenant.key());
        }
        unused
    }
}

/// Whether there is room for one more of the tenants that `counts`, of which there may be `most`. An idle one gives way:
/// it loses nothing but its worker, which the next request starts again.
fn has_capacity(
    tenants: &mut HashMap<TenantKey, Arc<Tenant>>,
    most: usize,
    counts: impl Fn(&TenantKey) -> bool,
) -> bool {
    if tenants.keys().filter(|key| counts(key)).count() < most {
        return true;
    }
    let mut counted = tenants.iter().filter(|(key, _)| counts(key));
    let idle = counted.find(|(_, tenant)| tenant.is_idle());
    let Some(idle) = idle.map(|(key, _)| key.clone()) else {
        return false;
    };
    tenants.remove(&idle);
    true
}

/// No code panics while it holds one of these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use alknet_compute_wire::GpuAdapter;
    use alknet_worker::WorkersConfig;

    use super::*;

    /// A service whose workers take this driver only, and whose first worker found `adapter`.
    fn compute(driver: Option<&str>, adapter: Option<GpuAdapter>) -> Compute {
        let settings = ComputeSettings {
            driver: driver.map(str::to_owned),
            ..ComputeSettings::default()
        };
        let workers = Workers::start(WorkersConfig::this_executable()).expect("a supervisor");
        let compute = Compute::new(workers, settings);
        assert_eq!(compute.driver_missing(), None, "no worker has looked");
        let info = GpuWorkerInfo {
            adapter,
            reason: Some("v3dv has no hardware here".to_owned()),
            ..GpuWorkerInfo::default()
        };
        compute.learn(&Arc::new(info));
        compute
    }

    #[test]
    fn a_driver_that_is_not_there_is_said() {
        let why = compute(Some("v3dv"), None).driver_missing();
        let why = why.expect("nothing to compute with");
        assert!(
            why.contains("'v3dv'") && why.contains("no hardware"),
            "{why}"
        );
        for (driver, adapter) in [
            (None, None),
            (Some(NO_DRIVER), None),
            (Some("v3dv"), Some(GpuAdapter::default())),
        ] {
            assert_eq!(
                compute(driver, adapter).driver_missing(),
                None,
                "{driver:?}"
            );
        }
    }

    #[test]
    fn workers_receive_the_path_of_their_driver() {
        let told = |driver: Option<&str>| {
            let settings = ComputeSettings {
                driver: driver.map(str::to_owned),
                ..ComputeSettings::default()
            };
            let mut environment = role(&settings).environment.into_iter();
            environment.find(|(name, _)| name == DRIVER)
        };
        assert_eq!(told(None), None);
        let v3dv = (DRIVER.to_owned(), "v3dv".to_owned());
        assert_eq!(told(Some("v3dv")), Some(v3dv));
    }
}
