"""The kind of each torch operation: one table of names for all rules."""

from __future__ import annotations

from attrfn._torch import private

STRUCTURE = """
add sub subtract rsub __radd__ __rsub__ neg negative positive sum mean cumsum diff trace
view view_as reshape reshape_as flatten ravel unflatten squeeze unsqueeze permute transpose
swapaxes swapdims movedim moveaxis t adjoint expand expand_as broadcast_to broadcast_tensors
contiguous clone alias lift_fresh view_copy atleast_1d atleast_2d atleast_3d
cat concat concatenate stack hstack vstack dstack column_stack row_stack meshgrid block_diag
chunk split split_with_sizes tensor_split hsplit vsplit dsplit unsafe_chunk unsafe_split unbind
narrow select slice index_select index __getitem__ gather take take_along_dim __iter__
diagonal diag diag_embed diagflat tril triu diagonal_scatter select_scatter slice_scatter
flip fliplr flipud rot90 roll repeat repeat_interleave tile unfold fold as_strided
pad constant_pad_nd masked_fill masked_select masked_scatter where scatter scatter_add
index_add index_copy index_put index_fill __setitem__ copy fill zero
to type type_as float double half bfloat16 cfloat cdouble cpu cuda _to_copy
real imag view_as_real view_as_complex complex conj resolve_conj resolve_neg
fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn
fft_rfftn fft_irfftn fft_hfft fft_ihfft fft_fftshift fft_ifftshift
interpolate upsample upsample_nearest upsample_bilinear
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
pixel_shuffle pixel_unshuffle channel_shuffle max_unpool1d max_unpool2d max_unpool3d
embedding embedding_bag nll_loss deg2rad rad2deg trapezoid nansum nanmean
affine_grid affine_grid_generator
requires_grad retain_grad pack_padded_sequence pad_packed_sequence put fill_diagonal
"""
"""Linear in all tensors together: their derivative is right for every rule."""

PRODUCTS = """
mul multiply __rmul__ matmul __matmul__ __rmatmul__ mm bmm mv dot vdot inner outer ger einsum
tensordot kron cross linalg_cross linalg_matmul linalg_multi_dot chain_matmul linalg_vecdot
linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
addmm addmv addbmm baddbmm addr addcmul bilinear lerp
"""
"""Affine in each tensor: linear if one of them depends on the inputs, else a product."""

ELEMENTWISE = """
relu relu6 threshold leaky_relu prelu rrelu elu selu celu gelu silu mish hardtanh hardswish
hardsigmoid hardshrink softshrink tanhshrink softplus softsign logsigmoid log_sigmoid sigmoid tanh
exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square pow float_power __rpow__ abs absolute
sin cos tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh arcsinh arccosh
arctanh angle erf erfc erfinv lgamma digamma reciprocal sign sgn round floor ceil trunc fix frac
clamp clip clamp_min clamp_max nan_to_num logit sinc
heaviside xlogy atan2 arctan2 hypot maximum minimum fmax fmin logaddexp logaddexp2 fmod remainder
copysign i0 div divide true_divide __rdiv__ __rtruediv__ floor_divide __floordiv__ __rfloordiv__
special_expit special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expm1
special_log1p special_log_ndtr special_ndtr special_ndtri special_xlogy special_xlog1py
special_entr special_gammaln special_digamma special_psi special_sinc special_logit special_round
special_i0 special_i0e special_i1 special_i1e
"""
"""A function of each element, of one tensor or of two."""

THROUGH_ZERO = "relu leaky_relu prelu abs absolute"
"""Linear on both sides of zero: f(x) / x is the derivative."""

CONSTANT = """
zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones
new_full new_empty new_tensor size dim ndimension numel nelement stride storage_offset
is_floating_point is_complex is_contiguous element_size get_device isnan isinf isfinite
isposinf isneginf is_same_size __len__ __repr__ __format__ __hash__ is_tensor
result_type can_cast is_pinned register_hook __reduce_ex__ sym_size sym_numel
sym_stride _assert_async _assert_tensor_metadata
"""
"""Results do not depend on values, or only tell whether they are finite."""

PATTERNED = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as"])
"""Take values from their first argument only; the others give a shape, type or device."""

SHAPES = frozenset(
    [
        "squeeze",
        "unsqueeze",
        "transpose",
        "swapaxes",
        "swapdims",
        "t",
        "as_strided",
        "requires_grad",
        "retain_grad",
    ]
)
"""Change the shape of a tensor, or nothing, where they write in place."""

PACKINGS = frozenset(["pack_padded_sequence", "pad_packed_sequence"])
"""Return lengths with their values, which come from lengths alone."""

SIDE_BY_SIDE = frozenset(
    ["broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d"]
)
"""Return one tensor for each that they get, with its values only."""

READS = frozenset(
    (
        *("item", "tolist", "numpy", "__float__", "__int__", "__complex__", "__array__"),
        *("__index__", "__bool__", "is_nonzero", "equal", "allclose"),
    )
)
"""Give Python numbers or arrays, which have no derivative."""

_HOLOMORPHIC = """
exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square pow float_power __rpow__ reciprocal
sin cos tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh arcsinh arccosh
arctanh sigmoid tanhshrink sinc logaddexp div divide true_divide __rdiv__ __rtruediv__
special_expit special_exp2 special_expm1 special_log1p special_sinc
"""

HOLOMORPHIC = frozenset(_HOLOMORPHIC.split())
"""Have a slope (f(x) - f(x0)) / (x - x0) that is a derivative for complex numbers, too."""

STEPS = frozenset(["floor_divide", "__floordiv__", "__rfloordiv__", "heaviside"])
"""Piecewise constant, and without a derivative in torch."""

ATTRIBUTES = (
    *("shape", "dtype", "device", "ndim", "layout", "requires_grad", "grad_fn", "is_leaf", "names"),
    *(
        "is_cuda",
        "is_cpu",
        "is_meta",
        "is_mps",
        "is_sparse",
        "is_nested",
        "is_quantized",
        "itemsize",
    ),
    *("nbytes", "output_nr", *private.ATTRIBUTES),
)
"""Attributes of tensors that do not depend on their values."""

ATTRIBUTES_OF_STRUCTURE = ("T", "mT", "H", "mH", "real", "imag")
"""Attributes of tensors that are linear operations."""

NORMS = """
layer_norm rms_norm group_norm instance_norm batch_norm normalize local_response_norm
"""
"""Divide by statistics."""

OTHERS = """
softmax softmin log_softmax logsumexp special_softmax special_log_softmax special_logsumexp
scaled_dot_product_attention multi_head_attention_forward glu
lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
max min amax amin max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices
adaptive_max_pool3d_with_indices lp_pool1d lp_pool2d lp_pool3d
dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout
native_dropout
var std var_mean std_mean norm linalg_norm linalg_vector_norm frobenius_norm dist
cosine_similarity pairwise_distance mse_loss l1_loss cross_entropy addcdiv
binary_cross_entropy_with_logits binary_cross_entropy kl_div smooth_l1_loss huber_loss
grid_sample stft istft polar gumbel_softmax scatter_reduce index_reduce sparse_mm sparse_addmm
grouped_mm prod cumprod logcumsumexp quantile cdist inverse linalg_inv linalg_solve
linalg_solve_triangular
"""
"""Operations with other rules, each by its name in a table."""

SOFTMAX = "softmax log_softmax logsumexp special_softmax special_log_softmax special_logsumexp"

SELECTIONS = """
max min amax amin maximum minimum fmax fmin sort msort topk kthvalue median nanmedian cummax cummin
max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
fractional_max_pool2d fractional_max_pool3d
"""
"""Return some of their values, in another order or shape."""

MOVES = """
view view_as reshape reshape_as flatten ravel unflatten squeeze unsqueeze permute transpose
swapaxes swapdims movedim moveaxis t adjoint expand expand_as broadcast_to broadcast_tensors T
contiguous clone alias lift_fresh view_copy atleast_1d atleast_2d atleast_3d
cat concat concatenate stack hstack vstack dstack column_stack row_stack
chunk split split_with_sizes tensor_split hsplit vsplit dsplit unsafe_chunk unsafe_split unbind
narrow select slice index_select index __getitem__ gather take take_along_dim diagonal
flip fliplr flipud rot90 roll repeat repeat_interleave tile unfold pad constant_pad_nd masked_fill
where to type type_as float double half bfloat16 cpu cuda _to_copy pixel_shuffle pixel_unshuffle
channel_shuffle
"""
"""Move values to other places without changing them."""

DROPOUTS = (
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout "
    "native_dropout"
)

SINCE = {"lp_pool3d": (2, 3), "rms_norm": (2, 4), "grouped_mm": (2, 9)}
"""The torch that each of these operations came with; the others are older than any supported."""

NEWEST = (2, 13)
"""The newest torch that the tables were compared with; a later one may have dropped a name."""

IN_EXPORTED_GRAPHS = frozenset(
    ["alias", "index", "lift_fresh", "slice", "_to_copy", "sym_size", "sym_numel", "sym_stride"]
)
"""Operations of torch.ops.aten that no public function of torch has."""
