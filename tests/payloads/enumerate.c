/* Prints what is on the PCI bus: slot, vendor:device, the BAR's address and size, capabilities. */
#include "payload.h"

void main(void)
{
    for (int slot = 0; slot < 32; slot++) {
        u32 id = read32(config(slot, 0));
        if (id == 0xffffffff)
            continue;
        print("slot "), print_hex(slot, 2);
        print(" "), print_hex(id & 0xffff, 4), print(":"), print_hex(id >> 16, 4);
        u32 bar = read32(config(slot, 0x10));
        write32(config(slot, 0x10), 0xffffffff);
        u32 size = ~(read32(config(slot, 0x10)) & ~15u) + 1;
        write32(config(slot, 0x10), bar);
        print(" bar "), print_hex(bar, 8), print(" size "), print_hex(size, 8);
        print(" caps");
        for (int cap = read8(config(slot, 0x34)); cap; cap = read8(config(slot, cap + 1)))
            print(" "), print_hex(read8(config(slot, cap)), 2);
        print("\n");
    }
    power_off();
}
