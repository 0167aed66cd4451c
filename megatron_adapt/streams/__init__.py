"""Tensors on their way from file to file: read in bands of rows, as bits, in the same little memory whatever their size.

No torch: a conversion that keeps the dtype is done before torch would have been imported.
"""
