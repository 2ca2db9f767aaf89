/* The rows of a scan: what dumps.c reads into and scan.c fills. */
#ifndef RCN_SCAN_H
#define RCN_SCAN_H

#include "rtnl_api.h"

enum { RCN_LINKS, RCN_ADDRESSES, RCN_ROUTES, RCN_RULES, RCN_NEIGHBOURS, RCN_HEAP };

/* Room for `size` zeroed bytes at the end of a row array, or NULL. */
void *rcn_grow(struct rcn_scan *scan, int which, size_t size);

#endif
