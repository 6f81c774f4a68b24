import numpy as np
def intensity_range(voxels):
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    low, high = np.percentile(finite, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1.0)
