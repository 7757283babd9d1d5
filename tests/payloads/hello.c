/* The least a guest can do: say something and switch itself off. */
#include "payload.h"

void main(void)
{
    print("hello from a bare guest\n");
    power_off();
}
