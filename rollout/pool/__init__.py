"""Several engines elsewhere behind one: who samples what, and what happens when one is lost.

`engine_pool` is that engine, `seats` what it keeps of workers and requests, `pool_member` one
worker asked alone. Only `ray_pool` knows of Ray.
"""
