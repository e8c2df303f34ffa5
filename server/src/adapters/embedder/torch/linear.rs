//! `y = x Wᵀ + b`, with what follows it done in the same pass.
//!
//! On x86 CPUs the weights are laid out for oneDNN once, at load. libtorch's ordinary `linear` goes
//! to MKL, which uses half the width of the vector unit on processors that are not Intel's:
//! measured on an AMD EPYC (Zen 5), one core, 110 against 250 GFLOP/s from 64 rows on, and 70
//! against 160 for the ten rows of a short query. oneDNN's layer also adds the residual and takes
//! the GELU while the result is still in the cache.

use tch::{TchError, Tensor};

pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    packed: bool,
}

impl Linear {
    /// Takes a weight of shape `[out, in]` and a bias of shape `[out]`.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        if weight.device() == tch::Device::Cpu
            && let Some(packed) = onednn::pack(&weight)
        {
            return Self { weight: packed, bias, packed: true };
        }
        Self { weight, bias, packed: false }
    }

    /// The same layer for another thread: the weights are shared.
    pub fn share(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            packed: self.packed,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.packed {
            return onednn::linear(x, &self.weight, &self.bias, c"none");
        }
        x.f_linear(&self.weight, Some(&self.bias))
    }

    /// GELU of the layer, in its exact form with the error function.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.packed {
            return onednn::linear(x, &self.weight, &self.bias, c"gelu");
        }
        x.f_linear(&self.weight, Some(&self.bias))?.f_gelu("none")
    }

    /// The layer plus `residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor, TchError> {
        if self.packed {
            return onednn::linear_add(x, residual, &self.weight, &self.bias);
        }
        x.f_linear(&self.weight, Some(&self.bias))?.f_add(residual)
    }
}

/// oneDNN's linear layer with packed weights. tch has no binding for it because it is no operator
/// of libtorch's own; libtorch exports it with C linkage for code compiled ahead of time.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod onednn {
    use std::ffi::{CStr, c_char, c_void};
    use std::ptr;

    use tch::{TchError, Tensor};

    /// `AtenTensorHandle` of `torch/csrc/inductor/aoti_torch/c/shim.h`: an `at::Tensor *`, which
    /// is also what tch's pointers are.
    type Handle = *mut c_void;

    unsafe extern "C" {
        fn aoti_torch_cpu__linear_pointwise(
            x: Handle,
            weight: Handle,
            bias: *const Handle,
            attribute: *const c_char,
            scalars: *const *const f64,
            scalars_len: i64,
            algorithm: *const *const c_char,
            result: *mut Handle,
        ) -> i32;
        fn aoti_torch_cpu__linear_pointwise_binary(
            x: Handle,
            other: Handle,
            weight: Handle,
            bias: *const Handle,
            attribute: *const c_char,
            result: *mut Handle,
        ) -> i32;
        fn aoti_torch_call_dispatcher(
            name: *const c_char,
            overload: *const c_char,
            stack: *mut u64,
        ) -> i32;
        /// `operator new(std::size_t)`, for a value that libtorch frees with `delete`.
        #[link_name = "_Znwm"]
        fn operator_new(size: usize) -> *mut c_void;
    }

    /// The number of rows for which oneDNN chooses the layout; measured to be the best or within
    /// a few percent of it from 1 to 4096 rows.
    const ROWS: u64 = 256;

    /// A weight in oneDNN's layout, or `None` where this libtorch cannot make one.
    pub fn pack(weight: &Tensor) -> Option<Tensor> {
        if !tch::utils::has_mkldnn() {
            return None;
        }
        let mut owned = weight.shallow_clone();
        // SAFETY: the operator is `_reorder_linear_weight(Tensor, int? batch_size) -> Tensor`.
        // The call takes ownership of the tensor, hence the `forget`, and of the optional number,
        // which is a pointer to a value from `operator new`; it leaves an owned tensor at the
        // head of the stack, allocated as tch allocates its own.
        unsafe {
            let rows = operator_new(size_of::<u64>()).cast::<u64>();
            rows.write(ROWS);
            let mut stack = [owned.as_mut_ptr() as u64, rows as u64];
            std::mem::forget(owned);
            let status = aoti_torch_call_dispatcher(
                c"mkldnn::_reorder_linear_weight".as_ptr(),
                c"".as_ptr(),
                stack.as_mut_ptr(),
            );
            (status == 0).then(|| Tensor::from_ptr(stack[0] as *mut _))
        }
    }

    pub fn linear(
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        then: &CStr,
    ) -> Result<Tensor, TchError> {
        let (exact, bias) = (c"none".as_ptr(), handle(bias));
        let mut result = ptr::null_mut();
        // SAFETY: the handles are tensors that outlive the call, which only reads them; there are
        // no scalars; on success `result` is a new tensor that we own.
        let status = unsafe {
            aoti_torch_cpu__linear_pointwise(
                handle(x),
                handle(weight),
                &raw const bias,
                then.as_ptr(),
                ptr::null(),
                0,
                &raw const exact,
                &raw mut result,
            )
        };
        owned(status, result)
    }

    pub fn linear_add(
        x: &Tensor,
        other: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor, TchError> {
        let (bias, mut result) = (handle(bias), ptr::null_mut());
        // SAFETY: as in `linear`.
        let status = unsafe {
            aoti_torch_cpu__linear_pointwise_binary(
                handle(x),
                handle(other),
                handle(weight),
                &raw const bias,
                c"add".as_ptr(),
                &raw mut result,
            )
        };
        owned(status, result)
    }

    fn handle(tensor: &Tensor) -> Handle {
        tensor.as_ptr().cast_mut().cast()
    }

    fn owned(status: i32, result: Handle) -> Result<Tensor, TchError> {
        if status != 0 || result.is_null() {
            return Err(TchError::Torch("oneDNN's linear layer failed".to_owned()));
        }
        // SAFETY: a tensor made with `new`, as tch's own are, that nobody else holds.
        Ok(unsafe { Tensor::from_ptr(result.cast()) })
    }
}

/// Elsewhere `linear` is what there is.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod onednn {
    use std::ffi::CStr;

    use tch::{TchError, Tensor};

    pub fn pack(_: &Tensor) -> Option<Tensor> {
        None
    }

    pub fn linear(x: &Tensor, w: &Tensor, b: &Tensor, _: &CStr) -> Result<Tensor, TchError> {
        x.f_linear(w, Some(b))
    }

    pub fn linear_add(
        x: &Tensor,
        other: &Tensor,
        w: &Tensor,
        b: &Tensor,
    ) -> Result<Tensor, TchError> {
        x.f_linear(w, Some(b))?.f_add(other)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_packed_layer_computes_what_a_plain_one_does() {
        compare(Kind::Float, 1e-3);
    }

    #[test]
    fn a_packed_layer_of_bf16_computes_what_a_plain_one_of_fp32_does() {
        if !crate::adapters::embedder::torch::cpu_has_bf16() {
            return println!("not run: this CPU has no bf16");
        }
        // Results of up to 64 have neighbours 0.25 apart.
        compare(Kind::BFloat16, 0.5);
    }

    fn compare(kind: Kind, tolerance: f64) {
        tch::set_num_threads(1);
        let _guard = tch::no_grad_guard();
        // Numbers that bf16 has, so that only the layer's own rounding differs.
        let random = |shape: [i64; 2]| {
            Tensor::randn(shape, (Kind::BFloat16, tch::Device::Cpu)).to_kind(Kind::Float)
        };
        let (weight, bias) = (random([96, 64]), random([1, 96]).view([96]));
        let layer = Linear::new(weight.to_kind(kind), bias.to_kind(kind));
        assert_eq!(layer.packed, cfg!(all(target_os = "linux", target_arch = "x86_64")));
        let plain = Linear { weight, bias, packed: false };
        for rows in [1, 3, 16, 300] {
            let (x, residual) = (random([rows, 64]), random([rows, 96]));
            let (x_kind, residual_kind) = (x.to_kind(kind), residual.to_kind(kind));
            for (ours, theirs) in [
                (layer.forward(&x_kind), plain.forward(&x)),
                (layer.forward_gelu(&x_kind), plain.forward_gelu(&x)),
                (layer.forward_add(&x_kind, &residual_kind), plain.forward_add(&x, &residual)),
                (layer.share().forward(&x_kind), plain.share().forward(&x)),
            ] {
                let ours = ours.unwrap();
                assert_eq!(ours.kind(), kind);
                let difference = (ours.to_kind(Kind::Float) - theirs.unwrap()).abs().max();
                assert!(f64::try_from(&difference).unwrap() < tolerance, "{rows} rows");
            }
        }
    }
}
