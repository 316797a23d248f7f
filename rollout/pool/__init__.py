"""Several engines elsewhere behind one."""
