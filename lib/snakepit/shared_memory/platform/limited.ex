defmodule Snakepit.SharedMemory.Platform.Limited do
  @moduledoc false
  # A platform that we cannot run on (R1.4): every call says so, by the platform's name.

  alias Snakepit.SharedMemory.Error

  @reason "the core has no platform layer for it yet"

  defmacro __using__(system) do
    quote do
      @behaviour Snakepit.SharedMemory.Platform

      alias Snakepit.SharedMemory.Platform.Limited

      @impl true
      def allocate(region_id, _size, _options),
        do: Limited.refuse(unquote(system), :allocate_region, region_id)

      @impl true
      def map(_handle, _options), do: Limited.refuse(unquote(system), :map_region, nil)

      @impl true
      def unmap(_mapping, _size), do: Limited.refuse(unquote(system), :unmap_region, nil)

      @impl true
      def deallocate(_handle), do: Limited.refuse(unquote(system), :deallocate_region, nil)

      @impl true
      def get_info(_handle), do: Limited.refuse(unquote(system), :get_region_info, nil)

      @impl true
      def capabilities(_dir), do: Limited.refuse(unquote(system), :capabilities, nil)
    end
  end

  @spec refuse(String.t(), atom(), term()) :: {:error, Error.t()}
  def refuse(system, operation, region) do
    {:error,
     Error.new(:unsupported, "shared memory is not supported on #{system}: #{@reason}",
       region: if(is_binary(region), do: region),
       operation: operation,
       remedy: "run on Linux, x86-64 or aarch64; a container or a virtual machine will do"
     )}
  end
end
