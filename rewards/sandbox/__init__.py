"""Guests: processes in which model output is run, and what they give up.

    sandbox, workers, wire              the host's side: fork a guest, wait, kill; what may cross
    zygote                              the process that guests are forked from
    linux, seccomp, syscalls            what the kernel takes away; bubblewrap is another way
    readable, guest_memory              files that guests may read; memory that they share
    probe, probe_guest, trial, faults   does it hold here, do graders work in it, who was at fault

It knows nothing of mathematics or programs.
"""
