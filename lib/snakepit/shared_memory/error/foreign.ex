defmodule Snakepit.SharedMemory.Error.Foreign do
  @moduledoc false
  # Our errors as those of Snakepit, when it is there. It is no dependency: only what it has is
  # called, by its name.

  alias Snakepit.SharedMemory.Error

  @target Snakepit.Error

  @spec convert(Error.t()) :: Error.t() | struct()
  def convert(%Error{} = error) do
    function = constructor(error)

    if Code.ensure_loaded?(@target) and function_exported?(@target, function, 2) do
      apply(@target, function, [message(error), details(error)])
    else
      error
    end
  end

  # Snakepit's own categories; what is neither late nor wrongly asked is about resources, as its
  # errors of pools are.
  defp constructor(%{code: code}) when code in [:timeout, :deadline_violation], do: :timeout_error

  defp constructor(error) do
    if Error.class(error) == :invalid_request, do: :validation_error, else: :pool_error
  end

  defp message(%{message: message, remedy: nil}), do: message
  defp message(%{message: message, remedy: remedy}), do: "#{message}; remedy: #{remedy}"

  defp details(error) do
    %{
      reason: error.code,
      class: Error.class(error),
      subsystem: :shared_memory,
      region_id: error.region,
      operation: error.operation,
      remedy: error.remedy,
      platform: error.platform,
      process_id: error.process_id,
      timestamp: error.timestamp,
      additional_info: error.additional_info
    }
  end
end
