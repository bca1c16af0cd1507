"""The commands on several machines: prepare, train and recommend on Ray, by the same code as on one."""
