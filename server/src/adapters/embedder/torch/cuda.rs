//! What libtorch has for GPUs alone. It is loaded when a GPU is to be used, and only where there is a
//! driver: it takes a second and hundreds of megabytes, which a server on CPUs does not need.

mod graph;

use std::ffi::c_void;
use std::ptr;
use std::sync::LazyLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Device, Kind, TchError, Tensor};

use super::shim::{self, Handle, handle, owned};
pub use graph::{Graph, Pool};

const DRIVER: &str = "libcuda.so.1";
const LIBRARY: &str = "libtorch_cuda.so";
/// What the kernel for half precision asks of a head's width.
const FLASH_MULTIPLE: i64 = 8;
const FLASH_WIDEST: i64 = 256;

/// Of `torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h`. A pointer to a value is an option:
/// null is none.
type FlashAttention = unsafe extern "C" fn(
    query: Handle,
    key: Handle,
    value: Handle,
    query_starts: *const Handle,
    key_starts: *const Handle,
    longest_query: i64,
    longest_key: i64,
    dropout: f64,
    is_causal: i32,
    debug_mask: i32,
    scale: *const f64,
    window_left: *const i64,
    window_right: *const i64,
    keys_used: *const Handle,
    alibi_slopes: *const Handle,
    result: *mut Handle,
    log_sums: *mut Handle,
    random_state: *mut Handle,
    unused: *mut Handle,
    mask: *mut Handle,
) -> i32;
type EfficientAttention = unsafe extern "C" fn(
    query: Handle,
    key: Handle,
    value: Handle,
    bias: *const Handle,
    query_starts: *const Handle,
    key_starts: *const Handle,
    longest_query: *const i64,
    longest_key: *const i64,
    dropout: f64,
    mask_type: i64,
    with_log_sums: i32,
    scale: *const f64,
    key_lengths: *const Handle,
    window: *const i64,
    result: *mut Handle,
    log_sums: *mut Handle,
    seed: *mut Handle,
    offset: *mut Handle,
    longest_query_found: *mut i64,
    longest_key_found: *mut i64,
) -> i32;
/// Of `torch/csrc/stable/c/shim.h`.
type StreamFromPool =
    unsafe extern "C" fn(high: bool, device: i32, stream: *mut *mut c_void) -> i32;
type SetStream = unsafe extern "C" fn(stream: *mut c_void, device: i32) -> i32;

struct Cuda {
    flash_attention: FlashAttention,
    efficient_attention: EfficientAttention,
    stream_from_pool: StreamFromPool,
    set_stream: SetStream,
    graphs: graph::Functions,
}

static CUDA: LazyLock<Result<Cuda, String>> =
    LazyLock::new(|| Cuda::load().map_err(|error| error.to_string()));

impl Cuda {
    fn load() -> Result<Self, libloading::Error> {
        // SAFETY: both run their initializers and nothing else. The functions are what the headers
        // say of this version of libtorch, to which tch is bound as well, and stay where they are,
        // since the library is never closed.
        unsafe {
            std::mem::forget(Library::open(Some(DRIVER), RTLD_NOW)?);
            let library = Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL)?;
            let cuda = Self {
                flash_attention: *library.get(b"aoti_torch_cuda__flash_attention_forward\0")?,
                efficient_attention: *library
                    .get(b"aoti_torch_cuda__efficient_attention_forward\0")?,
                stream_from_pool: *library.get(b"torch_get_cuda_stream_from_pool\0")?,
                set_stream: *library.get(b"torch_set_current_cuda_stream\0")?,
                graphs: graph::Functions::of(&library)?,
            };
            std::mem::forget(library);
            Ok(cuda)
        }
    }
}

/// How many GPUs there are, or why they cannot be used.
pub fn count() -> Result<usize, String> {
    CUDA.as_ref().map_err(Clone::clone)?;
    Ok(usize::try_from(tch::Cuda::device_count()).unwrap_or(0))
}

fn loaded() -> Result<&'static Cuda, TchError> {
    CUDA.as_ref().map_err(|reason| TchError::Torch(reason.clone()))
}

/// Puts this thread's work on a GPU into a queue of its own, which runs beside those of other threads.
pub fn use_own_stream(device: usize) -> Result<(), TchError> {
    let cuda = loaded()?;
    let number = i32::try_from(device).unwrap_or(i32::MAX);
    let mut stream = ptr::null_mut();
    // SAFETY: `stream` is written and then read. libtorch keeps its streams for ever.
    let status = unsafe {
        match (cuda.stream_from_pool)(false, number, &raw mut stream) {
            0 => (cuda.set_stream)(stream, number),
            status => status,
        }
    };
    if status == 0 { Ok(()) } else { Err(failure("a stream", Device::Cuda(device))) }
}

/// On the GPU, from memory that it reads by itself: the call does not wait for the copy.
pub fn upload(values: &Tensor, device: Device) -> Result<Tensor, TchError> {
    // SAFETY: the operator is `pin_memory(Tensor(a) self, Device? device) -> Tensor(a)`. tch's binding
    // gives a device, at which libtorch prints a warning.
    let pinned = unsafe { shim::call(c"aten::pin_memory", values, ptr::null_mut()) };
    let pinned = pinned.ok_or_else(|| failure("pinning memory", device))?;
    pinned.f_to_device_(device, values.kind(), true, false)
}

/// Attention within texts whose rows lie one after the other: query, key and value of shape
/// `[tokens, heads, width of a head]` give one of the same shape. `starts` says where the texts
/// begin and where the last one ends, in 32 bits; `longest` has so many tokens.
///
/// # Source
/// Dao 2023, "FlashAttention-2" (arXiv:2307.08691), for bf16; Rabe and Staats 2021, "Self-attention
/// Does Not Need O(n²) Memory" (arXiv:2112.05682), otherwise.
pub fn attention(parts: &[Tensor; 3], starts: &Tensor, longest: i64) -> Result<Tensor, TchError> {
    let (cuda, width) = (loaded()?, parts[0].size()[2]);
    let flash =
        parts[0].kind() == Kind::BFloat16 && width % FLASH_MULTIPLE == 0 && width <= FLASH_WIDEST;
    let starts = handle(starts);
    let result = if flash {
        cuda.flash(parts.each_ref().map(handle), starts, longest)
    } else {
        let [query, key, value] = parts.each_ref().map(|part| part.f_unsqueeze(0));
        let parts = [query?, key?, value?];
        let result = cuda.efficient(parts.each_ref().map(handle), starts, longest);
        result.map(|result| result.f_squeeze_dim(0)).transpose()?
    };
    result.ok_or_else(|| failure("attention", parts[0].device()))
}

impl Cuda {
    fn flash(&self, parts: [Handle; 3], starts: Handle, longest: i64) -> Option<Tensor> {
        let [query, key, value] = parts;
        let mut made: [Handle; 5] = [ptr::null_mut(); 5];
        let [result, log_sums, random_state, unused, mask] = &mut made;
        // SAFETY: the handles are tensors that outlive the call, which only reads them; what it
        // makes is ours.
        let status = unsafe {
            (self.flash_attention)(
                query,
                key,
                value,
                &raw const starts,
                &raw const starts,
                longest,
                longest,
                0.0,
                0,
                0,
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                result,
                log_sums,
                random_state,
                unused,
                mask,
            )
        };
        first(status, made)
    }

    fn efficient(&self, parts: [Handle; 3], starts: Handle, longest: i64) -> Option<Tensor> {
        let [query, key, value] = parts;
        let mut made: [Handle; 4] = [ptr::null_mut(); 4];
        let [result, log_sums, seed, offset] = &mut made;
        let (mut longest_query, mut longest_key) = (0, 0);
        // SAFETY: as in `flash`; the numbers are on this stack.
        let status = unsafe {
            (self.efficient_attention)(
                query,
                key,
                value,
                ptr::null(),
                &raw const starts,
                &raw const starts,
                &raw const longest,
                &raw const longest,
                0.0,
                0,
                0,
                ptr::null(),
                ptr::null(),
                ptr::null(),
                result,
                log_sums,
                seed,
                offset,
                &raw mut longest_query,
                &raw mut longest_key,
            )
        };
        first(status, made)
    }
}

/// Of the tensors that a function made; the others are dropped.
fn first<const N: usize>(status: i32, made: [Handle; N]) -> Option<Tensor> {
    made.map(|made| owned(status, made)).into_iter().next().flatten()
}

/// Why something failed that does not tell: a GPU that is lost says so when it is asked again; one that
/// is not had no memory.
fn failure(what: &str, device: Device) -> TchError {
    let probe = Tensor::f_zeros([1], (Kind::Int, device)).and_then(|x| x.f_to_device(Device::Cpu));
    probe.err().unwrap_or_else(|| TchError::Torch(format!("{what} failed: CUDA out of memory")))
}
