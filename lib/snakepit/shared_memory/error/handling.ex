defmodule Snakepit.SharedMemory.Error.Handling do
  @moduledoc false
  # An error of somebody else's code that deals with regions, as one of ours (`Error.handle_error/3`).

  alias Snakepit.SharedMemory.{Error, Options}

  # The code of each class, and the operation that `:io` is classed by where none is said.
  @types %{
    allocation_failed: {:io, :allocate_region},
    mapping_failed: {:io, :map_region},
    permission_denied: {:permission_denied, nil},
    region_not_found: {:not_found, nil},
    memory_limit_exceeded: {:resource_exhausted, nil},
    platform_error: {:io, nil},
    # It has a code of its own when there is somebody to find one.
    security_violation: {:permission_denied, nil},
    corruption_detected: {:corrupted, nil},
    cleanup_failed: {:io, :cleanup}
  }

  @context [
    region_id: {{:nilable, :string}, nil},
    operation: {{:nilable, :atom}, nil},
    platform: {{:in, [nil, :linux, :macos, :windows, :other]}, nil},
    process_id: {{:nilable, :pid}, nil},
    timestamp: {{:nilable, :datetime}, nil},
    additional_info: {:map, %{}}
  ]

  @limits %{
    memory_limit_exceeded: "deallocate what is not needed, or raise :max_total_memory",
    region_limit_exceeded: "deallocate what is not needed, or raise :max_regions"
  }

  @spec handle(term(), term(), term()) :: {:error, Error.t()}
  def handle(type, context, original) when is_map_key(@types, type) do
    with {:ok, context} <- Options.validate(context, @context, :handle_error) do
      error = type |> error(context, original) |> Error.Log.note()
      {:error, place(error, context)}
    else
      {:error, error} -> {:error, Error.Log.note(error)}
    end
  end

  def handle(type, _context, _original) do
    types = @types |> Map.keys() |> Enum.sort() |> Enum.map_join(", ", &inspect/1)
    error = Options.invalid("error type", "one of #{types}", type, :handle_error)
    {:error, Error.Log.note(error)}
  end

  # One of ours keeps what it says.
  defp error(_type, context, %Error{} = error) do
    %{
      error
      | region: error.region || context.region_id,
        operation: error.operation || context.operation,
        additional_info: Map.merge(context.additional_info, error.additional_info)
    }
  end

  defp error(type, context, limit)
       when type in [:allocation_failed, :memory_limit_exceeded] and is_map_key(@limits, limit) do
    new(:resource_exhausted, :allocate_region, context, limit, remedy: @limits[limit])
  end

  defp error(type, context, original) do
    {code, operation} = Map.fetch!(@types, type)
    error = new(code, operation, context, original, [])
    # An operation of the caller's may be of another class than what has gone wrong.
    if Error.class(error) in [type, :permission_denied],
      do: error,
      else: %{error | operation: operation}
  end

  defp new(code, operation, context, original, details) do
    shown = inspect(original, limit: 5, printable_limit: 60)
    message = "#{said(code)}: #{shown}"

    Error.new(
      code,
      message,
      [
        region: context.region_id,
        operation: context.operation || operation,
        additional_info: Map.put(context.additional_info, :original, original)
      ] ++ details
    )
  end

  defp said(:io), do: "the operating system refused it"
  defp said(:permission_denied), do: "not allowed"
  defp said(:not_found), do: "region not found"
  defp said(:resource_exhausted), do: "a limit is reached"
  defp said(:corrupted), do: "what is in shared memory contradicts itself"

  # Where and when it happened is the caller's to say: it may be elsewhere and earlier than here.
  defp place(error, context) do
    said = for key <- [:platform, :process_id, :timestamp], context[key] != nil, do: key
    struct!(error, Map.take(context, said))
  end
end
