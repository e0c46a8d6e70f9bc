//! What a supervisor of processes is given: the traits and names of the plan, and a manager that does what
//! they ask.

use super::{Reaper, ReaperEvent, ReaperOptions};
use crate::error::Result;
use crate::lifecycle::CleanupOptions;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The controller's segments (plan, "Module-specific segment ownership").
pub mod evo {
    /// Exclusive writer: control unit.
    pub const CONTROL_UNIT_SEGMENT: &str = "control_state";
    /// Exclusive writer: HAL.
    pub const HAL_INPUT_SEGMENT: &str = "phys_input_io";
    /// Exclusive writer: recipe executor.
    pub const RECIPE_OUTPUT_SEGMENT: &str = "phys_output_io";
    /// Exclusive writer: API liaison.
    pub const API_COMMAND_SEGMENT: &str = "commands_config";
}

/// What a supervisor does for shared memory (plan, "Integration Contracts"; there without `self`, here
/// with it, so that one process can supervise several namespaces).
pub trait ShmLifecycleManager {
    /// Starts noticing deaths and cleaning up.
    ///
    /// # Errors
    ///
    /// As [`Reaper::start`].
    fn initialize_shm_subsystem(&self) -> Result<()>;
    /// Has `handler` called after each cleanup that removed something.
    fn register_cleanup_handler(&self, handler: Box<dyn Fn() + Send>);
    /// Cleans up now; returns how many segments were removed.
    ///
    /// # Errors
    ///
    /// As [`CleanupOptions::run`].
    fn periodic_cleanup(&self) -> Result<usize>;
    /// Cleans up now and grants crashed writers no grace.
    ///
    /// # Errors
    ///
    /// As [`CleanupOptions::run`].
    fn emergency_cleanup(&self) -> Result<()>;
}

/// A process that owns a segment (plan, "RT module integration pattern").
pub trait ShmUser {
    /// Name of its segment.
    fn segment_name(&self) -> &str;
    /// Capacity of its segment, in bytes.
    fn segment_size(&self) -> usize;
    /// Creates or takes over its segment.
    ///
    /// # Errors
    ///
    /// As [`SegmentOptions::create`](crate::SegmentOptions::create) and
    /// [`SegmentOptions::attach_writer`](crate::SegmentOptions::attach_writer).
    fn initialize_shm(&mut self) -> Result<()>;
    /// Gives its segment up.
    ///
    /// # Errors
    ///
    /// As [`SegmentWriter::close`](crate::SegmentWriter::close).
    fn shutdown_shm(&mut self) -> Result<()>;
}

type Handler = Arc<Mutex<Box<dyn Fn() + Send>>>;
type Handlers = Mutex<Vec<Handler>>;

/// Supervises one namespace.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// use snakepit_shm::{LifecycleManager, ReaperOptions, ShmLifecycleManager};
///
/// let manager = LifecycleManager::new(ReaperOptions::new("evo", dir.path()));
/// manager.register_cleanup_handler(Box::new(|| println!("cleaned up")));
/// manager.initialize_shm_subsystem().unwrap();
/// assert_eq!(manager.periodic_cleanup().unwrap(), 0);
/// manager.emergency_cleanup().unwrap();
/// ```
pub struct LifecycleManager {
    options: ReaperOptions,
    reaper: Mutex<Option<Reaper>>,
    handlers: Arc<Handlers>,
}

impl LifecycleManager {
    /// Does nothing until it is initialized.
    pub fn new(options: ReaperOptions) -> Self {
        Self {
            options,
            reaper: Mutex::new(None),
            handlers: Arc::default(),
        }
    }

    fn clean(&self, cleanup: &CleanupOptions) -> Result<usize> {
        let removed = cleanup.run()?.removed.len();
        if removed > 0 {
            call(&self.handlers);
        }
        Ok(removed)
    }
}

fn call(handlers: &Handlers) {
    // Called without the list's lock: a handler may register another.
    let list = handlers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for handler in list {
        // One that is being called already (by itself, perhaps) is not called again.
        if let Ok(handler) = handler.try_lock() {
            handler();
        }
    }
}

impl ShmLifecycleManager for LifecycleManager {
    fn initialize_shm_subsystem(&self) -> Result<()> {
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        if reaper.is_none() {
            let handlers = self.handlers.clone();
            *reaper = Some(Reaper::start(self.options.clone(), move |event| {
                if matches!(event, ReaperEvent::Swept(report) if !report.removed.is_empty()) {
                    call(&handlers);
                }
            })?);
        }
        Ok(())
    }

    fn register_cleanup_handler(&self, handler: Box<dyn Fn() + Send>) {
        self.handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::new(Mutex::new(handler)));
    }

    fn periodic_cleanup(&self) -> Result<usize> {
        self.clean(&self.options.cleanup)
    }

    fn emergency_cleanup(&self) -> Result<()> {
        let at_once = self.options.cleanup.clone().grace(Duration::ZERO);
        self.clean(&at_once).map(drop)
    }
}
