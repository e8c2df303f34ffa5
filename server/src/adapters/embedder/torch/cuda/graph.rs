//! Work on a GPU that is recorded once and then started as a whole: for a small batch, starting its
//! hundred kernels one by one takes longer than they run.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::os::unix::Library;
use tch::TchError;

/// More than an `at::cuda::CUDAGraph` has.
#[repr(C, align(64))]
struct Place([u8; 2048]);

/// Other threads may go on with what a recording may not do.
const THREAD_LOCAL: c_int = 1;

type Method = unsafe extern "C" fn(*mut c_void);
/// Of C++; only `graph.cpp` knows their arguments.
type Opaque = unsafe extern "C" fn();

unsafe extern "C" {
    fn sextant_graph_call(m: Method, graph: *mut c_void, message: *mut c_char, n: usize) -> c_int;
    fn sextant_graph_new(c: Opaque, at: *mut c_void, message: *mut c_char, n: usize) -> c_int;
    fn sextant_graph_pool(make: Opaque, pool: *mut u64, message: *mut c_char, n: usize) -> c_int;
    fn sextant_graph_begin(
        begin: Opaque,
        graph: *mut c_void,
        pool: *const u64,
        mode: c_int,
        message: *mut c_char,
        n: usize,
    ) -> c_int;
}

/// libtorch's functions for graphs.
pub struct Functions {
    new: Opaque,
    drop: Method,
    pool: Opaque,
    begin: Opaque,
    end: Method,
    replay: Method,
}

impl Functions {
    /// # Safety
    /// The library must be libtorch's, of the version that tch is bound to, and never be closed.
    pub unsafe fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: the names have the types of the arguments in them.
        unsafe {
            Ok(Self {
                new: *library.get(b"_ZN2at4cuda9CUDAGraphC1Eb\0")?,
                drop: *library.get(b"_ZN2at4cuda9CUDAGraphD1Ev\0")?,
                pool: *library.get(b"_ZN2at4cuda17graph_pool_handleEv\0")?,
                begin: *library.get(
                    b"_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode\0",
                )?,
                end: *library.get(b"_ZN2at4cuda9CUDAGraph11capture_endEv\0")?,
                replay: *library.get(b"_ZN2at4cuda9CUDAGraph6replayEv\0")?,
            })
        }
    }
}

/// Memory that graphs share which never run at the same time.
#[derive(Clone, Copy)]
pub struct Pool([u64; 2]);

impl Pool {
    pub fn new() -> Result<Self, TchError> {
        let functions = &super::loaded()?.graphs;
        let mut pool = [0; 2];
        // SAFETY: the pool has room for the two numbers.
        checked(|message, n| unsafe {
            sextant_graph_pool(functions.pool, pool.as_mut_ptr(), message, n)
        })?;
        Ok(Self(pool))
    }
}

/// A recording. Its results are where they were while it was recorded.
pub struct Graph {
    place: Box<UnsafeCell<Place>>,
    functions: &'static Functions,
}

// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` starts on this thread's stream, which must be one of its own.
    pub fn record<T>(
        pool: Pool,
        work: impl FnOnce() -> Result<T, TchError>,
    ) -> Result<(Self, T), TchError> {
        let functions = &super::loaded()?.graphs;
        let place = Box::new(UnsafeCell::new(Place([0; 2048])));
        // SAFETY: there is room for it.
        checked(|message, n| unsafe {
            sextant_graph_new(functions.new, place.get().cast(), message, n)
        })?;
        let graph = Self { place, functions };
        // SAFETY: it was made above.
        checked(|message, n| unsafe {
            let (begin, pool) = (functions.begin, pool.0.as_ptr());
            sextant_graph_begin(begin, graph.object(), pool, THREAD_LOCAL, message, n)
        })?;
        let made = work();
        graph.call(functions.end)?;
        Ok((graph, made?))
    }

    /// Starts all of it on this thread's stream.
    pub fn replay(&self) -> Result<(), TchError> {
        self.call(self.functions.replay)
    }

    fn object(&self) -> *mut c_void {
        self.place.get().cast()
    }

    fn call(&self, method: Method) -> Result<(), TchError> {
        // SAFETY: `object` is an `at::cuda::CUDAGraph` until it is dropped.
        checked(|message, n| unsafe { sextant_graph_call(method, self.object(), message, n) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Err(error) = self.call(self.functions.drop) {
            tracing::warn!(%error, "a graph was not freed");
        }
    }
}

fn checked(call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), TchError> {
    let mut message = [0; 1024];
    if call(message.as_mut_ptr(), message.len()) == 0 {
        return Ok(());
    }
    // SAFETY: what is called ends its message with a zero.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(TchError::Torch(message.to_string_lossy().into_owned()))
}
